package execution

import (
	"cmp"
	"crypto/sha256"
	"hash"
	"slices"

	"verbatim.dev/projections/internal/interval"
)

// MaxWaitingBytes bounds the bytes of an execution that wait for the bytes before them. The runner's tail
// after an elided middle waits for the seal: 8 MiB per stream by default (design section 5).
const MaxWaitingBytes = 32 << 20

// digest is a running SHA-256 over a stream's published bytes in the order of their offsets.
type digest struct {
	hash hash.Hash // nil: nothing yet
	// at is the first position that is neither in the hash nor passed over.
	at      uint64
	waiting []segment // ascending, disjoint, behind at
	holes   interval.Set
	// gone says that too much waited and was dropped.
	gone bool
}

// push takes bytes that were not received before.
func (d *digest) push(offset uint64, data []byte, waiting *int) {
	switch {
	case d.gone || offset < d.at: // behind at only when a hole was filled: then the digest says nothing anyhow
		return
	case offset == d.at:
		d.write(data)
	case *waiting+len(data) > MaxWaitingBytes:
		*waiting -= d.waitingBytes()
		d.gone, d.waiting, d.hash = true, nil, nil
		return
	default:
		i, _ := slices.BinarySearchFunc(d.waiting, offset, func(g segment, x uint64) int { return cmp.Compare(g.offset, x) })
		d.waiting = slices.Insert(d.waiting, i, segment{offset: offset, data: slices.Clone(data)})
		*waiting += len(data)
	}
	d.advance(waiting)
}

// pass says which ranges never come.
func (d *digest) pass(holes interval.Set, waiting *int) {
	d.holes = holes
	d.advance(waiting)
}

func (d *digest) write(data []byte) {
	if d.hash == nil {
		d.hash = sha256.New()
	}
	d.hash.Write(data)
	d.at += uint64(len(data))
}

func (d *digest) advance(waiting *int) {
	n := 0
	for {
		if hole := d.holes.Within(interval.Range{Start: d.at, End: d.at + 1}); len(hole) > 0 {
			d.at = d.endOfHole(d.at)
		}
		if n == len(d.waiting) || d.waiting[n].offset > d.at {
			break
		}
		if g := d.waiting[n]; g.offset == d.at {
			d.write(g.data)
		}
		*waiting -= len(d.waiting[n].data)
		n++
	}
	if n > 0 {
		d.waiting = slices.Delete(d.waiting, 0, n)
	}
}

func (d *digest) endOfHole(x uint64) uint64 {
	for _, r := range d.holes.Ranges() {
		if r.Start <= x && x < r.End {
			return r.End
		}
	}
	return x
}

// sum is the digest of the first end positions, holes passed over; false when it is not known.
func (d *digest) sum(end uint64) ([]byte, bool) {
	if d.gone || d.at != end {
		return nil, false
	}
	if d.hash == nil {
		return sha256.New().Sum(nil), true
	}
	return d.hash.Sum(nil), true
}

func (d *digest) waitingBytes() int {
	n := 0
	for _, g := range d.waiting {
		n += len(g.data)
	}
	return n
}
