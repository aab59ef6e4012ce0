package storetest

import (
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func TestRetention(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	var ids []string
	for n, age := range []int{0, 29, 40} {
		f := factsOf(t, idAt(time.Now().AddDate(0, 0, -age), n))
		ids = append(ids, f.id)
		f.say(1, &executionv1.ProcessStarted{Pid: 1})
		must(t, s.InsertEvents(t.Context(), f.all))
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
	}
	left := func(table string) string {
		exec(t, dsn, "OPTIMIZE TABLE "+table+" FINAL")
		var text string
		must(t, database(t, dsn).QueryRowContext(t.Context(), "SELECT arrayStringConcat(arraySort(groupUniqArray(execution_id)), ' ') FROM "+table).Scan(&text))
		return text
	}
	days, forever, tooMany := uint(30), uint(0), uint(1<<20)
	must(t, s.SetRetention(t.Context(), clickhouse.Retention{RowsDays: &days}))
	if got, want := left("executions"), ids[1]+" "+ids[0]; got != want {
		t.Errorf("rows left: %s, want %s", got, want)
	}
	if got, want := left("events"), ids[2]+" "+ids[1]+" "+ids[0]; got != want {
		t.Errorf("events left: %s, want %s", got, want)
	}
	must(t, s.SetRetention(t.Context(), clickhouse.Retention{RowsDays: &forever, EventsDays: &days}))
	must(t, s.SetRetention(t.Context(), clickhouse.Retention{RowsDays: &forever, EventsDays: &days}))
	if got, want := left("events"), ids[1]+" "+ids[0]; got != want {
		t.Errorf("events left: %s, want %s", got, want)
	}
	old := execution.New(ids[2])
	must(t, s.InsertRows(t.Context(), []*execution.State{old}))
	if got, want := left("executions"), ids[2]+" "+ids[1]+" "+ids[0]; got != want {
		t.Errorf("rows left for ever: %s, want %s", got, want)
	}
	if err := s.SetRetention(t.Context(), clickhouse.Retention{EventsDays: &tooMany}); err == nil {
		t.Error("a million days are taken")
	}
	must(t, s.CheckSchema(t.Context()))
}
