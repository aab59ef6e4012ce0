package execution

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

// maxContradictions bounds the list; the last entry then says how many more there are.
const maxContradictions = 32

// contradictions names what cannot all be true, in the order of attempts.
func (s *State) contradictions() []string {
	out := []string{}
	add := func(format string, args ...any) {
		out = append(out, strings.ToValidUTF8(fmt.Sprintf(format, args...), "\uFFFD"))
	}
	differs(add, "", "ExecutionRequested", &s.requested)
	numbers := make([]uint32, 0, len(s.attempts))
	for n := range s.attempts {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		s.attempts[n].contradictions(add)
	}
	if s.limited {
		add("more producers, holes or foreign ids than are kept: counts and ranges are lower bounds")
	}
	if n := len(out) - maxContradictions; n > 0 {
		out = append(out[:maxContradictions], fmt.Sprintf("and %d more", n))
	}
	return out
}

type reporter func(format string, args ...any)

func differs[M proto.Message](add reporter, prefix, name string, s *slot[M]) {
	if s.differs {
		add("%sdifferent %s facts, the row shows that of %s, sequence %d", prefix, name, s.source, s.sequence)
	}
}

func (a *attempt) contradictions(add reporter) {
	p := fmt.Sprintf("attempt %d: ", a.number)
	differs(add, p, "Prepared", &a.prepared)
	differs(add, p, "PreparationFailed", &a.preparationFailed)
	differs(add, p, "ProcessStarted", &a.started)
	differs(add, p, "StartFailed", &a.startFailed)
	differs(add, p, "StdinWriteFailed", &a.stdinFailed)
	differs(add, p, "ProcessExited", &a.exited)
	differs(add, p, "WaitFailed", &a.waitFailed)
	if a.sealsDiffer() {
		add("%sOutputSealed facts that cannot all be true, the row shows the one with the most bytes", p)
	}
	for _, f := range a.recorded.data.GetArtifacts() {
		if f.GetDigestCheck() == executionv1.DigestCheck_DIGEST_CHECK_MISMATCH {
			add("%sthe file that %s is recorded in has not the bytes that the seal states", p, streamNames[streamIndex(f.GetStream())])
		}
	}
	if a.preparationFailed.set && (a.ran() || a.prepared.set) {
		add("%sPreparationFailed, and facts of a process or its launch spec", p)
	}
	if a.startFailed.set && a.ran() {
		add("%sStartFailed, and facts of a process", p)
	}
	for i := range a.streams {
		s, seal := &a.streams[i], a.sealOf(i)
		if c := s.clashes(); len(c) > 0 {
			add("%s%s has different bytes for one position, first at %d", p, streamNames[i], c[0].Start)
		}
		if seal == nil {
			continue
		}
		if s.end > seal.GetCapturedBytes() && !seal.GetPipeStillHeld() {
			add("%s%s has bytes up to %d, the seal says %d", p, streamNames[i], s.end, seal.GetCapturedBytes())
		}
		if s.fills(interval.Of(append(ranges(seal.GetElided()), ranges(seal.GetLost())...)...)) {
			add("%s%s has bytes in a range that the seal says was left out", p, streamNames[i])
		}
	}
}

// factCounts counts the facts by name, and those skipped.
func (s *State) factCounts() (map[string]uint64, uint64) {
	counts, others, unknown := map[string]uint64{}, map[string]uint64{}, s.unknown
	for typ, n := range s.facts {
		counts[eventName(typ)] += n
	}
	for typ, n := range s.others {
		countBounded(others, typ, n)
	}
	for _, f := range s.seen.foreign {
		if f.unknown {
			unknown++
		}
		if _, ok := events.NewPayload(f.typ); ok {
			counts[eventName(f.typ)]++
		} else {
			countBounded(others, f.typ, 1)
		}
	}
	for typ, n := range others {
		counts[strings.ToValidUTF8(typ, "\uFFFD")] += n
	}
	return counts, unknown
}

// eventName is the event's name without the words all types share.
func eventName(typ string) string {
	return strings.TrimSuffix(strings.TrimPrefix(typ, "dev.verbatim.execution."), ".v1")
}
