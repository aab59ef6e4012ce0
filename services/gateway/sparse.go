package gateway

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// span is the half-open range [start, end) of a stream.
type span struct {
	start, end uint64
}

func spansOf(ranges []execution.Range, stream string) []span {
	var out []span
	for _, r := range ranges {
		if r.Stream == stream {
			out = append(out, span{r.Start, r.End})
		}
	}
	return out
}

// spansText writes spans as the headers have them: 10-20,30-31.
func spansText(spans []span) string {
	var b strings.Builder
	for i, s := range spans {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(s.start, 10) + "-" + strconv.FormatUint(s.end, 10))
	}
	return b.String()
}

// between returns what of [0, end) is in no gap, ascending. Gaps may overlap and have any order.
func between(end uint64, gaps []span) []span { return without([]span{{0, end}}, gaps) }

// without cuts holes out of disjoint ascending spans.
func without(spans, holes []span) []span {
	holes = slices.SortedFunc(slices.Values(holes), func(a, b span) int { return cmp.Compare(a.start, b.start) })
	var out []span
	for _, s := range spans {
		for _, h := range holes {
			if h.end <= s.start || h.start >= s.end {
				continue
			}
			if h.start > s.start {
				out = append(out, span{s.start, h.start})
			}
			s.start = min(h.end, s.end)
		}
		if s.start < s.end {
			out = append(out, s)
		}
	}
	return out
}

// sparse reads the parts of a stream that are there as one sequence of bytes; it is an io.ReadSeeker. A part that the
// archive does not have is an error, never a shorter sequence.
type sparse struct {
	parts []span
	size  int64
	open  func(from, to uint64) iter.Seq2[clickhouse.Chunk, error]

	pos int64
	// While reading: the part that pos is in, the position in the stream, and what was read and not yet taken.
	part  int
	at    uint64
	chunk []byte
	next  func() (clickhouse.Chunk, error, bool)
	stop  func()
	// err is the first failure of Read.
	err error
}

func newSparse(parts []span, open func(from, to uint64) iter.Seq2[clickhouse.Chunk, error]) *sparse {
	s := &sparse{parts: parts, open: open}
	for _, p := range parts {
		s.size += int64(p.end - p.start)
	}
	return s
}

// Seek implements io.Seeker.
func (s *sparse) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	s.close()
	s.pos = offset
	return offset, nil
}

// Read implements io.Reader.
func (s *sparse) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.pos >= s.size {
		return 0, io.EOF
	}
	if s.next == nil {
		s.begin()
	}
	if s.at == s.parts[s.part].end {
		s.part++
		s.skipTo(s.parts[s.part].start)
	}
	if s.err = s.fill(); s.err != nil {
		return 0, s.err
	}
	n := min(len(p), len(s.chunk))
	if left := s.parts[s.part].end - s.at; uint64(n) > left {
		n = int(left)
	}
	copy(p, s.chunk[:n])
	s.chunk = s.chunk[n:]
	s.at += uint64(n)
	s.pos += int64(n)
	return n, nil
}

// begin opens the archive where pos is.
func (s *sparse) begin() {
	left := uint64(s.pos)
	s.part = 0
	for left >= s.parts[s.part].end-s.parts[s.part].start {
		left -= s.parts[s.part].end - s.parts[s.part].start
		s.part++
	}
	s.at = s.parts[s.part].start + left
	s.next, s.stop = iter.Pull2(s.open(s.at, s.parts[len(s.parts)-1].end))
}

// skipTo goes on in the next part, leaving out what the archive has in between.
func (s *sparse) skipTo(at uint64) {
	s.chunk = s.chunk[min(at-s.at, uint64(len(s.chunk))):]
	s.at = at
}

// fill makes sure that the chunk begins at the position.
func (s *sparse) fill() error {
	for len(s.chunk) == 0 {
		c, err, ok := s.next()
		end := c.Offset + uint64(len(c.Data))
		switch {
		case err != nil:
			return err
		case !ok || c.Offset > s.at:
			return fmt.Errorf("the archive lacks byte %d, which the row has", s.at)
		case end > s.at:
			s.chunk = c.Data[s.at-c.Offset:]
		}
	}
	return nil
}

func (s *sparse) failure() error { return s.err }

func (s *sparse) close() {
	if s.stop != nil {
		s.stop()
	}
	s.next, s.stop, s.chunk = nil, nil, nil
}
