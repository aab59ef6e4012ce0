package execution

import (
	"strings"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// firstDeleted is greater than any number of facts: a row that was deleted stays so, whatever else becomes known.
const firstDeleted = 1 << 62

// maxDeletions bounds the deletions kept. The row shows the smallest, the others are kept for the version.
const maxDeletions = 8

// deletedFormat is the form of the state of a deleted execution, see formatVersion. The older oneDeletedFormat has room for one deletion
// alone, and is still written where that is enough: of what was deleted an older program could rebuild nothing.
const (
	oneDeletedFormat = 1 << 20
	deletedFormat    = oneDeletedFormat + 1
)

// Deleted says whether the execution was deleted.
func (s *State) Deleted() bool { return len(s.deleted.facts) > 0 }

// deletedVersion grows with every deletion that says something else: the row may then be another one.
func (s *State) deletedVersion() uint64 {
	return firstDeleted + uint64(len(s.deleted.facts)-1) + s.changes
}

// forget drops everything but that somebody wanted it dropped. So the state is the same whatever came before, and comes later.
func (s *State) forget(e events.Event, d *executionv1.ExecutionDeleted, at time.Time) (changed bool) {
	if !s.Deleted() {
		*s = *New(s.id)
	}
	before := len(s.deleted.facts)
	changed, _ = s.deleted.joinUpTo(fact[*executionv1.ExecutionDeleted]{
		origin{strings.Clone(e.Source), e.Sequence},
		at,
		&executionv1.ExecutionDeleted{RequestedBy: clip(d.GetRequestedBy()), Reason: clip(d.GetReason())},
	}, maxDeletions)
	if changed && len(s.deleted.facts) == before {
		s.changes++ // More than are kept, or an earlier time.
	}
	return changed
}

// deletedRow tells who deleted it, when and why.
func (s *State) deletedRow() Row {
	shown := s.deleted.facts[0]
	d := shown.data
	r := Row{
		ExecutionID: s.id, Status: StatusDeleted, Reason: ptr(StatusDeleted), ErrorSource: ptr("delete"), EndedAt: when(shown.at),
		Labels: map[string]string{}, Command: []string{}, Missing: []Range{}, Elided: []Range{}, OutputErrors: []string{}, Contradictions: []string{},
		Facts: map[string]uint64{eventName(events.TypeExecutionDeleted): 1}, Version: s.deletedVersion(), Sealed: true,
	}
	message := "deleted by " + first(d.GetRequestedBy(), "somebody")
	if d.GetReason() != "" {
		message += ": " + d.GetReason()
	}
	r.Error = ptr(clip(message))
	return r
}

func (s *State) marshalDeleted(w *writer) []byte {
	if len(s.deleted.facts) == 1 && s.changes == 0 {
		w.uint(oneDeletedFormat)
		w.bytes([]byte(s.id))
		writeSlot(w, &slot[*executionv1.ExecutionDeleted]{set: true, fact: s.deleted.facts[0]})
		return appendChecksum(w.b)
	}
	w.uint(deletedFormat)
	w.bytes([]byte(s.id))
	writeLog(w, &s.deleted)
	w.uint(s.changes)
	return appendChecksum(w.b)
}

func loadDeleted(r *reader) (*State, error) {
	s := New(string(r.bytes()))
	if r.form == oneDeletedFormat {
		var one slot[*executionv1.ExecutionDeleted]
		if readSlot(r, &one); one.set {
			s.deleted.facts = append(s.deleted.facts, one.fact)
		}
	} else {
		readLog(r, &s.deleted)
		s.changes = r.uint()
	}
	if r.err == nil && (len(r.b) > 0 || !s.Deleted()) {
		r.fail("it is no state of a deleted execution")
	}
	return s, r.err
}
