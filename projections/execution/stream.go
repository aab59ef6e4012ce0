package execution

import (
	"bytes"
	"math"
	"slices"

	"verbatim.dev/projections/internal/interval"
)

// Bytes kept of a stream.
const (
	headBytes = 64 << 10
	tailBytes = 64 << 10
)

// stream is what is known of one output of an attempt.
type stream struct {
	received interval.Set
	// twice holds what more than one fact carried past the head, where it is not known whether the
	// bytes were equal.
	twice interval.Set
	// end is the highest end of a chunk.
	end uint64
	// head holds the known bytes below headBytes, tail those from headBytes on in the last tailBytes below end.
	// Both follow from the set of chunks alone, since end only grows.
	head, tail window
	digest     digest
}

// add joins a chunk and says whether that changed anything. added says that its fact was not met before. kept is false when the
// stream would fall into too many ranges; the chunk is then left out.
func (s *stream) add(offset uint64, data []byte, from origin, added bool, waiting *int) (changed, kept bool) {
	r := interval.Range{Start: offset, End: offset + uint64(len(data))}
	if r.Len() == 0 { // also when the end passes 2^64
		return false, true
	}
	fresh := []interval.Range{r}
	if r.Start < s.end {
		fresh = s.received.Without(r)
		if added {
			for _, part := range s.received.Within(r) {
				s.twice.Add(interval.Range{Start: max(part.Start, headBytes), End: part.End}, maxRanges)
			}
		}
	}
	if !s.received.Add(r, maxRanges) {
		return false, false
	}
	s.end = max(s.end, r.End)
	changed = s.keep(segment{offset, data, from}) || len(fresh) > 0
	for _, part := range fresh {
		s.digest.push(part.Start, data[part.Start-r.Start:part.End-r.Start], waiting)
	}
	return changed, true
}

func (s *stream) keep(c segment) (changed bool) {
	if c.offset < headBytes {
		changed = s.head.put(c.slice(c.offset, min(c.end(), headBytes)))
	}
	from := s.tailStart()
	s.tail.drop(from)
	if c.end() > from {
		changed = s.tail.put(c.slice(max(c.offset, from), c.end())) || changed
	}
	return changed
}

func (s *stream) tailStart() uint64 {
	return max(headBytes, s.end-min(s.end, tailBytes))
}

// clashes are the ranges, among the bytes kept, of which different facts say different things.
func (s *stream) clashes() []interval.Range {
	return append(slices.Clone(s.head.clash.Ranges()), s.tail.clash.Ranges()...)
}

// pieces are the bytes kept, as long runs, ascending.
func (s *stream) pieces() []segment {
	size := 0
	for _, w := range []*window{&s.head, &s.tail} {
		for _, g := range w.segments {
			size += len(g.data)
		}
	}
	all := make([]byte, 0, size) // never grows, so the runs can be parts of it
	var out []segment
	for _, w := range []*window{&s.head, &s.tail} {
		for _, g := range w.segments {
			from := len(all)
			all = append(all, g.data...)
			if n := len(out); n > 0 && out[n-1].end() == g.offset {
				out[n-1].data = all[from-len(out[n-1].data):]
				continue
			}
			out = append(out, segment{offset: g.offset, data: all[from:]})
		}
	}
	return out
}

// segment is consecutive bytes and the fact they came from.
type segment struct {
	offset uint64
	data   []byte
	from   origin
}

func (g segment) end() uint64 { return g.offset + uint64(len(g.data)) }

// slice returns the part [from, to) of a segment that holds it.
func (g segment) slice(from, to uint64) segment {
	return segment{from, g.data[from-g.offset : to-g.offset], g.from}
}

// window holds known bytes as segments: ascending, disjoint. Where facts carry different bytes for one
// position, the smallest origin's are kept and the position is in clash.
type window struct {
	segments []segment
	clash    interval.Set
}

// put joins bytes, which it copies. It says whether there are others then, or of another fact.
func (w *window) put(c segment) (changed bool) {
	c.data = slices.Clone(c.data)
	if n := len(w.segments); n == 0 || w.segments[n-1].end() <= c.offset { // in order, as almost always
		w.segments = append(w.segments, c)
		return true
	}
	i, _ := slices.BinarySearchFunc(w.segments, c.offset, func(g segment, x uint64) int {
		if g.end() <= x {
			return -1
		}
		return 1
	})
	j := i
	at := c.offset
	var out []segment
	for ; j < len(w.segments) && w.segments[j].offset < c.end(); j++ {
		old := w.segments[j]
		if old.offset < c.offset {
			out = append(out, old.slice(old.offset, c.offset))
		}
		if at < old.offset {
			out, changed = append(out, c.slice(at, old.offset)), true
		}
		low, high := max(old.offset, c.offset), min(old.end(), c.end())
		settled, other := w.settle(old.slice(low, high), c.slice(low, high))
		out, changed = append(out, settled), changed || other
		if high < old.end() {
			out = append(out, old.slice(high, old.end()))
		}
		at = high
	}
	if at < c.end() {
		out, changed = append(out, c.slice(at, c.end())), true
	}
	w.segments = slices.Replace(w.segments, i, j, out...)
	return changed
}

// settle picks between two versions of the same range, of which a is kept so far.
func (w *window) settle(a, b segment) (settled segment, changed bool) {
	order := a.from.compare(b.from)
	if bytes.Equal(a.data, b.data) {
		if order <= 0 {
			return a, false
		}
		return b, true
	}
	mixed := slices.Clone(a.data)
	for i := range a.data {
		if a.data[i] != b.data[i] {
			at := a.offset + uint64(i)
			changed = changed || !w.clash.Contains(at)
			w.clash.Add(interval.Range{Start: at, End: at + 1}, 0)
			mixed[i] = min(a.data[i], b.data[i])
		}
	}
	switch {
	case order < 0:
		return a, changed
	case order > 0:
		return b, true
	}
	// One id with two contents. No rule says which is right; the smaller byte is the same in any order.
	return segment{a.offset, mixed, a.from}, changed || !bytes.Equal(mixed, a.data)
}

// drop forgets what lies below from.
func (w *window) drop(from uint64) {
	n := 0
	for n < len(w.segments) && w.segments[n].end() <= from {
		n++
	}
	// Cut off the front instead of moving the rest: the next growth of the slice leaves it behind.
	clear(w.segments[:n])
	w.segments = w.segments[n:]
	if len(w.segments) > 0 && w.segments[0].offset < from {
		g := w.segments[0]
		w.segments[0] = g.slice(from, g.end())
	}
	if !w.clash.Empty() {
		w.clash.Keep(interval.Range{Start: from, End: math.MaxUint64})
	}
}
