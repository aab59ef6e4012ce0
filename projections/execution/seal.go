package execution

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

// A runner seals an attempt's output once, and once more when another process held a pipe and bytes came late. The second
// seal counts everything from the stream's first byte on, so it says all that the first one said. Which one that is, is not told by the
// order in which they come: of each stream the seal with the most bytes holds, of two with as many the one whose pipe is not
// held any more. The others must agree with it as far as they go; if they do not, that is a contradiction.

// maxSeals bounds the seals kept of an attempt. A runner says at most two.
const maxSeals = 8

// sealed says whether the output was closed.
func (a *attempt) sealed() bool { return len(a.seals.facts) > 0 }

// sealOf is what is stated of a stream in the end, nil when nothing is.
func (a *attempt) sealOf(index int) *executionv1.StreamSeal {
	if all := a.sealsOf(index); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// sealsOf are all the statements about a stream, the one that holds last.
func (a *attempt) sealsOf(index int) []*executionv1.StreamSeal {
	var all []*executionv1.StreamSeal
	for _, f := range a.seals.facts {
		i := slices.IndexFunc(f.data.GetStreams(), func(s *executionv1.StreamSeal) bool { return streamIndex(s.GetStream()) == index })
		if i >= 0 {
			all = append(all, f.data.GetStreams()[i])
		}
	}
	// The facts are in the order of their origin, so of equal ones the smallest origin's comes last.
	slices.Reverse(all)
	slices.SortStableFunc(all, func(s, t *executionv1.StreamSeal) int {
		switch n, m := s.GetCapturedBytes(), t.GetCapturedBytes(); {
		case n != m && n < m, n == m && s.GetPipeStillHeld() && !t.GetPipeStillHeld():
			return -1
		case n != m || s.GetPipeStillHeld() != t.GetPipeStillHeld():
			return 1
		}
		return 0
	})
	return all
}

// sealsDiffer says whether the seals contradict each other.
func (a *attempt) sealsDiffer() bool {
	if len(a.seals.facts) < 2 {
		return false
	}
	for i := range a.streams {
		all := a.sealsOf(i)
		for n, earlier := range all {
			for _, later := range all[n+1:] {
				if !goesOn(earlier, later) {
					return true
				}
			}
		}
	}
	return false
}

// goesOn says whether both seals can be true of one stream: they are the same, or the pipe was still held at the earlier one and the
// later one says the same of all that was there then.
func goesOn(earlier, later *executionv1.StreamSeal) bool {
	if proto.Equal(earlier, later) {
		return true
	}
	end := earlier.GetCapturedBytes()
	if !earlier.GetPipeStillHeld() || later.GetPublishedBytes() < earlier.GetPublishedBytes() || later.GetMaskedBytes() < earlier.GetMaskedBytes() ||
		!sameBelow(end, earlier.GetElided(), later.GetElided()) || !sameBelow(end, earlier.GetLost(), later.GetLost()) {
		return false
	}
	return later.GetCapturedBytes() > end || later.GetPublishedBytes() == earlier.GetPublishedBytes() &&
		sameDigest(earlier.GetSha256(), later.GetSha256()) && sameDigest(earlier.GetPublishedSha256(), later.GetPublishedSha256())
}

// sameDigest compares digests of the same bytes, either of which may not have been computed.
func sameDigest(one, other []byte) bool {
	return len(one) == 0 || len(other) == 0 || bytes.Equal(one, other)
}

func sameBelow(end uint64, earlier, later []*executionv1.ByteRange) bool {
	below := interval.Range{End: end}
	one, other := interval.Of(ranges(earlier)...), interval.Of(ranges(later)...)
	return slices.Equal(one.Within(below), other.Within(below))
}
