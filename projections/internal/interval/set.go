// Package interval keeps sets of whole numbers as ranges: the sequences seen of a producer, the bytes
// received of a stream. Adding is a union, so a set is the same whatever order its parts came in.
//
// A set refuses what would make it hold more ranges than its limit. Numbers that arrive roughly in
// order need one range; only a hostile or badly broken producer meets the limit.
package interval

import (
	"cmp"
	"slices"
)

// Range is the half-open range [Start, End).
type Range struct {
	Start, End uint64
}

// Len is how many numbers the range holds; 0 when it is empty or backwards.
func (r Range) Len() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return r.End - r.Start
}

// Set is a union of ranges: ascending, disjoint, not touching. The zero value is empty.
type Set struct {
	ranges []Range
}

// Of returns the union of ranges, without a limit.
func Of(ranges ...Range) Set {
	var s Set
	for _, r := range ranges {
		s.Add(r, 0)
	}
	return s
}

// Ranges are the set's ranges, ascending. The slice belongs to the set.
func (s *Set) Ranges() []Range { return s.ranges }

// Empty says whether the set holds nothing.
func (s *Set) Empty() bool { return len(s.ranges) == 0 }

// Len is how many numbers the set holds.
func (s *Set) Len() uint64 {
	n := uint64(0)
	for _, r := range s.ranges {
		n += r.Len()
	}
	return n
}

// find returns the index of the first range that ends at or after x.
func (s *Set) find(x uint64) int {
	i, _ := slices.BinarySearchFunc(s.ranges, x, func(r Range, x uint64) int { return cmp.Compare(r.End, x) })
	return i
}

// Add unites the set with r. It is false, and the set unchanged, when the set would then hold more than
// limit ranges; limit 0 is none.
func (s *Set) Add(r Range, limit int) bool {
	if r.Len() == 0 {
		return true
	}
	if n := len(s.ranges); n > 0 && s.ranges[n-1].End == r.Start {
		s.ranges[n-1].End = r.End
		return true
	}
	i := s.find(r.Start)
	j := i
	for j < len(s.ranges) && s.ranges[j].Start <= r.End {
		j++
	}
	if i == j {
		if limit > 0 && len(s.ranges) >= limit {
			return false
		}
		s.ranges = slices.Insert(s.ranges, i, r)
		return true
	}
	s.ranges[i] = Range{min(r.Start, s.ranges[i].Start), max(r.End, s.ranges[j-1].End)}
	s.ranges = slices.Delete(s.ranges, i+1, j)
	return true
}

// Contains says whether x is in the set.
func (s *Set) Contains(x uint64) bool {
	i := s.find(x)
	if i < len(s.ranges) && s.ranges[i].End == x {
		i++
	}
	return i < len(s.ranges) && s.ranges[i].Start <= x
}

// Within returns the parts of r that are in the set.
func (s *Set) Within(r Range) []Range {
	var in []Range
	for i := s.find(r.Start); i < len(s.ranges) && s.ranges[i].Start < r.End; i++ {
		part := Range{max(r.Start, s.ranges[i].Start), min(r.End, s.ranges[i].End)}
		if part.Len() > 0 {
			in = append(in, part)
		}
	}
	return in
}

// Without returns the parts of r that are not in the set.
func (s *Set) Without(r Range) []Range {
	var out []Range
	at := r.Start
	for _, part := range s.Within(r) {
		if part.Start > at {
			out = append(out, Range{at, part.Start})
		}
		at = part.End
	}
	if at < r.End {
		out = append(out, Range{at, r.End})
	}
	return out
}

// Keep intersects the set with r.
func (s *Set) Keep(r Range) { s.ranges = s.Within(r) }
