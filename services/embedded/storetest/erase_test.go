package storetest

import (
	"testing"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
)

// Of an execution that was deleted only that is left, in every table; others are not touched.
func TestErase(t *testing.T) {
	t.Parallel()
	s := open(t)
	gone, stays := ended(t, 1, 3), ended(t, 2, 3)
	archive := func(f *facts) { must(t, s.InsertEvents(t.Context(), f.all)) }
	must(t, s.InsertRows(t.Context(), []*execution.State{gone.state(), stays.state()}))
	h, err := s.Shadow("rebuilt")
	must(t, err)
	must(t, h.Make(t.Context(), []byte("a")))
	must(t, h.InsertRows(t.Context(), []*execution.State{gone.state(), stays.state()}))
	archive(gone)
	archive(stays)

	gone.say(0, &executionv1.ExecutionDeleted{RequestedBy: "ann"})
	archive(gone)
	if ids, err := s.Deleted(t.Context()); err != nil || len(ids) != 1 || ids[0] != gone.id {
		t.Fatalf("deleted with events left: %q, %v", ids, err)
	}
	for range 2 { // Again changes nothing.
		must(t, s.InsertRows(t.Context(), []*execution.State{gone.state()}))
		must(t, s.EraseRows(t.Context(), []string{gone.id}))
		must(t, s.EraseEvents(t.Context(), []string{gone.id}))
		for id, want := range map[string][2]uint64{gone.id: {0, 0}, stays.id: {2, uint64(len(stays.all))}} {
			rows, archived, err := s.Remains(t.Context(), id)
			must(t, err)
			if rows != want[0] || archived != want[1] {
				t.Errorf("of %s there are %d rows and %d events, want %v", id, rows, archived, want)
			}
		}
	}
	if ids, err := s.Deleted(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("deleted with events left: %q, %v", ids, err)
	}
	row, err := s.Row(t.Context(), gone.id)
	must(t, err)
	sameRow(t, gone.state().Row(), row)
	if row.Status != execution.StatusDeleted || row.Stdout != nil {
		t.Errorf("the row: %+v", row)
	}
	must(t, s.EraseRows(t.Context(), nil))
	if err := s.EraseEvents(t.Context(), []string{"' OR 1=1 --"}); err == nil {
		t.Error("something that is no id is erased")
	}
}
