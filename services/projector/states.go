package projector

import (
	"container/list"

	"verbatim.dev/projections/execution"
)

// KeptBytes bounds the memory of the states that a projector keeps: when they have more, fewer of them stay than it was told to keep.
const KeptBytes = 256 << 20

// states keeps folded states, the least lately used one leaving first. It is used by one flush at a
// time and has no lock.
type states struct {
	keep        int
	keepBytes   int
	bytes       int                      // of all states, as they were when they were stored or loaded
	byID        map[string]*list.Element // of *state
	recent      *list.List               // front: lately used
	dirty       map[string]*state        // folded and not yet stored; these never leave
	assignments map[int]uint64           // partition to the assignment its states were folded under
}

type state struct {
	id        string
	partition int
	bytes     int
	fold      *execution.State
}

func newStates(keep, keepBytes int) *states {
	return &states{
		keep: keep, keepBytes: keepBytes, byID: map[string]*list.Element{}, recent: list.New(),
		dirty: map[string]*state{}, assignments: map[int]uint64{},
	}
}

// assign forgets what was folded under an earlier assignment and returns the ids of the batch that
// have no state here.
func (s *states) assign(facts []Fact) (missing []string) {
	seen := map[string]bool{}
	for _, f := range facts {
		if number, known := s.assignments[f.At.Partition]; !known || number != f.At.Assignment {
			s.forget(f.At.Partition)
			s.assignments[f.At.Partition] = f.At.Assignment
		}
	}
	for _, f := range facts {
		id := f.Event.Subject
		if s.byID[id] == nil && !seen[id] {
			seen[id] = true
			missing = append(missing, id)
		}
	}
	return missing
}

// forget drops a partition's states, also those whose rows were not stored: their facts were not
// acknowledged and come again.
func (s *states) forget(partition int) {
	for id, e := range s.byID {
		if st := e.Value.(*state); st.partition == partition {
			s.drop(e)
			delete(s.dirty, id)
		}
	}
}

func (s *states) drop(e *list.Element) {
	st := s.recent.Remove(e).(*state)
	delete(s.byID, st.id)
	s.bytes -= st.bytes
}

// put adds the loaded states, and new ones for ids that have no row.
func (s *states) put(ids []string, loaded map[string]*execution.State) {
	for _, id := range ids {
		fold := loaded[id]
		if fold == nil {
			fold = execution.New(id)
		}
		st := &state{id: id, bytes: fold.Size(), fold: fold}
		s.bytes += st.bytes
		s.byID[id] = s.recent.PushFront(st)
	}
}

func (s *states) apply(f Fact) {
	e := s.byID[f.Event.Subject]
	st := e.Value.(*state)
	st.partition = f.At.Partition
	s.recent.MoveToFront(e)
	if st.fold.Apply(f.Event, f.At.Time) {
		s.dirty[st.id] = st
	}
}

func (s *states) changed() []*execution.State {
	changed := make([]*execution.State, 0, len(s.dirty))
	for _, st := range s.dirty {
		changed = append(changed, st.fold)
	}
	return changed
}

// stored says that every changed row is in the store, and lets the longest unused states go.
func (s *states) stored() {
	for _, st := range s.dirty {
		s.bytes -= st.bytes
		st.bytes = st.fold.Size()
		s.bytes += st.bytes
	}
	clear(s.dirty)
	for s.recent.Len() > s.keep || s.bytes > s.keepBytes && s.recent.Len() > 1 {
		s.drop(s.recent.Back())
	}
}
