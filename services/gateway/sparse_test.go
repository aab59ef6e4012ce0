package gateway

import (
	"bytes"
	"io"
	"iter"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"verbatim.dev/projections/clickhouse"
)

// Whatever the gaps and the chunks, what is read is what is there, from every position, and a byte that is not there
// is an error.
func TestSparseReadsWhatIsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		stream := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "stream")
		end := len(stream)
		var gaps []span
		there := bytes.Repeat([]byte{1}, end)
		for range rapid.IntRange(0, 5).Draw(t, "gaps") {
			from := rapid.IntRange(0, end).Draw(t, "from")
			to := rapid.IntRange(from, end+5).Draw(t, "to")
			gaps = append(gaps, span{uint64(from), uint64(to)})
			for i := from; i < min(to, end); i++ {
				there[i] = 0
			}
		}
		var want []byte
		for i, b := range stream {
			if there[i] == 1 {
				want = append(want, b)
			}
		}
		lost := -1
		if rapid.Bool().Draw(t, "loses") && end > 0 {
			lost = rapid.IntRange(0, end-1).Draw(t, "lost")
		}
		size := rapid.IntRange(1, 40).Draw(t, "chunk")
		open := func(from, to uint64) iter.Seq2[clickhouse.Chunk, error] {
			return func(yield func(clickhouse.Chunk, error) bool) {
				for at := int(from); at < int(to); {
					next := min(at+size, int(to))
					if at == lost {
						at++
						continue
					}
					if lost > at {
						next = min(next, lost)
					}
					if !yield(clickhouse.Chunk{Offset: uint64(at), Data: stream[at:next]}, nil) {
						return
					}
					at = next
				}
			}
		}
		s := newSparse(between(uint64(end), gaps), open)
		defer s.close()
		if s.size != int64(len(want)) {
			t.Fatalf("size %d, want %d", s.size, len(want))
		}
		if lost >= 0 && there[lost] == 1 {
			if got, err := io.ReadAll(s); err == nil || !bytes.HasPrefix(want, got) {
				t.Fatalf("byte %d is lost, read %d of %d bytes and error %v", lost, len(got), len(want), err)
			}
			return
		}
		if lost < 0 {
			if err := iotest.TestReader(s, want); err != nil {
				t.Fatal(err)
			}
		}
		from := rapid.IntRange(0, len(want)).Draw(t, "seek")
		if _, err := s.Seek(int64(from), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want[from:]) {
			t.Fatalf("from %d: %d bytes, want %d, error %v", from, len(got), len(want)-from, err)
		}
	})
}
