package storetest

import (
	"slices"
	"testing"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
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

// As many at once as a batch of the services may hold: their ids are more than one request takes.
func TestEraseManyAtOnce(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	const many = 10_000
	var ids []string
	var archived []clickhouse.ArchivedEvent
	var states []*execution.State
	for n := range many {
		f := factsOf(t, idAt(testTime.AddDate(0, 0, -n%3), n))
		f.say(1, &executionv1.ProcessStarted{Pid: 1, Runner: "r1"})
		before := f.state()
		f.say(0, &executionv1.ExecutionDeleted{RequestedBy: "ann"})
		ids, archived, states = append(ids, f.id), append(archived, f.all...), append(states, before, f.state())
	}
	stays := ended(t, many, 3)
	must(t, s.InsertEvents(t.Context(), append(archived, stays.all...)))
	must(t, s.InsertRows(t.Context(), append(states, stays.state())))
	if left, err := s.Deleted(t.Context()); err != nil || len(left) != many {
		t.Fatalf("%d deleted with events left: %v", len(left), err)
	}
	twice := append(slices.Clone(ids), ids...) // A batch has many of them twice.
	must(t, s.EraseRows(t.Context(), twice))
	must(t, s.EraseEvents(t.Context(), twice))
	if left, err := s.Deleted(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%d deleted with events left: %v", len(left), err)
	}
	for what, want := range map[string]int{
		"executions WHERE status = 'deleted'": many, "executions WHERE status != 'deleted'": 1,
		"events WHERE type LIKE '%Deleted%'": many, "events WHERE type NOT LIKE '%Deleted%'": len(stays.all),
	} {
		var got int
		must(t, database(t, dsn).QueryRowContext(t.Context(), "SELECT toInt64(count()) FROM "+what).Scan(&got))
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
}
