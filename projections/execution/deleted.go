package execution

import (
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// deletedVersion is greater than any number of facts: a row that was deleted stays so, whatever else becomes known.
const deletedVersion = 1 << 62

// deletedFormat is the form of the state of a deleted execution, see formatVersion.
const deletedFormat = 1 << 20

// Deleted says whether the execution was deleted.
func (s *State) Deleted() bool { return s.deleted.set }

// forget drops everything but that somebody wanted it dropped. So the state is the same whatever came before, and comes later.
func (s *State) forget(e events.Event, d *executionv1.ExecutionDeleted, at time.Time) (added bool) {
	added = !s.deleted.set
	deleted := s.deleted
	deleted.join(fact[*executionv1.ExecutionDeleted]{
		origin{e.Source, e.Sequence},
		at,
		&executionv1.ExecutionDeleted{RequestedBy: clip(d.GetRequestedBy()), Reason: clip(d.GetReason())},
	})
	*s = *New(s.id)
	s.deleted = deleted
	return added
}

// deletedRow tells who deleted it, when and why.
func (s *State) deletedRow() Row {
	d := s.deleted.data
	r := Row{
		ExecutionID: s.id, Status: StatusDeleted, Reason: ptr(StatusDeleted), ErrorSource: ptr("delete"), EndedAt: when(s.deleted.at),
		Labels: map[string]string{}, Command: []string{}, Missing: []Range{}, Elided: []Range{}, OutputErrors: []string{}, Contradictions: []string{},
		Facts: map[string]uint64{eventName(events.TypeExecutionDeleted): 1}, Version: deletedVersion, Sealed: true,
	}
	message := "deleted by " + first(d.GetRequestedBy(), "somebody")
	if d.GetReason() != "" {
		message += ": " + d.GetReason()
	}
	r.Error = ptr(clip(message))
	return r
}

func (s *State) marshalDeleted(w *writer) []byte {
	w.uint(deletedFormat)
	w.bytes([]byte(s.id))
	writeSlot(w, &s.deleted)
	return appendChecksum(w.b)
}

func loadDeleted(r *reader) (*State, error) {
	s := New(string(r.bytes()))
	readSlot(r, &s.deleted)
	if r.err == nil && (len(r.b) > 0 || !s.deleted.set) {
		r.fail("it is no state of a deleted execution")
	}
	return s, r.err
}
