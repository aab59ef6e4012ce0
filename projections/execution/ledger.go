package execution

import (
	"bytes"
	"encoding/hex"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

// verdict on completeness. A refutation outweighs a doubt, a doubt outweighs a proof.
type verdict int

const (
	proven verdict = iota
	doubtful
	refuted
)

// ledger fills in what came, what did not, and whether that is everything.
func (a *attempt) ledger(r *Row, limited bool) {
	all := proven
	if limited {
		all = doubtful
	}
	contradicting := a.sealsDiffer()
	if contradicting {
		all = refuted
	}
	for i := range a.streams {
		s, seal := &a.streams[i], a.sealOf(i)
		r.Missing = append(r.Missing, named(i, s.missing(seal))...)
		if seal == nil {
			all = max(all, doubtful)
			continue
		}
		elided := interval.Of(ranges(seal.GetElided())...)
		r.Elided = append(r.Elided, named(i, elided.Ranges())...)
		match := s.digestMatch(seal, contradicting || limited)
		all = max(all, s.judge(seal, match))
		sum, held, masked := &r.StdoutSHA256, &r.StdoutPipeStillHeld, &r.StdoutMaskedRanges
		if i == stdout {
			r.StdoutDigestMatch = match
		} else {
			sum, held, masked, r.StderrDigestMatch = &r.StderrSHA256, &r.StderrPipeStillHeld, &r.StderrMaskedRanges, match
		}
		*sum, *held = text(hex.EncodeToString(seal.GetSha256())), ptr(seal.GetPipeStillHeld())
		*masked = ptr(seal.GetMaskedRanges())
	}
	switch {
	case a.neverRan():
		r.Sealed, r.Complete = true, ptr(true)
	case a.sealed():
		r.Sealed = true
		if all != doubtful {
			r.Complete = ptr(all == proven)
		}
	}
}

// missing are the ranges not received and not elided, with those that are stated as lost.
func (s *stream) missing(seal *executionv1.StreamSeal) []interval.Range {
	end := s.end
	if seal != nil {
		end = seal.GetCapturedBytes()
	}
	if seal.GetPipeStillHeld() {
		end = max(end, s.end) // Bytes that came late; another seal will count them.
	}
	there := interval.Of(s.received.Ranges()...)
	for _, r := range ranges(seal.GetElided()) {
		there.Add(r, 0)
	}
	gone := interval.Of(there.Without(interval.Range{End: end})...)
	for _, r := range ranges(seal.GetLost()) {
		gone.Add(r, 0)
	}
	return gone.Ranges()
}

// judge says whether the stream holds exactly what its seal states.
func (s *stream) judge(seal *executionv1.StreamSeal, match *bool) verdict {
	whole := interval.Range{End: seal.GetCapturedBytes()}
	holes := interval.Of(append(ranges(seal.GetElided()), ranges(seal.GetLost())...)...)
	got := interval.Of(s.received.Within(whole)...)
	switch {
	case len(s.missing(seal)) > 0, seal.GetPipeStillHeld(), s.end > seal.GetCapturedBytes(),
		len(s.clashes()) > 0, s.fills(holes), got.Len() != seal.GetPublishedBytes(), match != nil && !*match:
		return refuted
	case match == nil && len(seal.GetPublishedSha256()) > 0:
		return doubtful
	}
	return proven
}

// fills says whether a byte came that the seal says will not come.
func (s *stream) fills(holes interval.Set) bool {
	for _, h := range holes.Ranges() {
		if len(s.received.Within(h)) > 0 {
			return true
		}
	}
	return false
}

// digestMatch compares the received published bytes with the seal. It is nil when they are not all there,
// or when it is not certain which bytes count; that must not depend on the order in which they came.
func (s *stream) digestMatch(seal *executionv1.StreamSeal, unsure bool) *bool {
	holes := interval.Of(append(ranges(seal.GetElided()), ranges(seal.GetLost())...)...)
	if unsure || len(seal.GetPublishedSha256()) == 0 || s.end > seal.GetCapturedBytes() ||
		!s.twice.Empty() || len(s.clashes()) > 0 || s.fills(holes) {
		return nil
	}
	sum, ok := s.digest.sum(seal.GetCapturedBytes())
	if !ok {
		return nil
	}
	return ptr(bytes.Equal(sum, seal.GetPublishedSha256()))
}

func named(index int, rs []interval.Range) []Range {
	var out []Range
	for _, r := range rs {
		out = append(out, Range{streamNames[index], r.Start, r.End})
	}
	return out
}
