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

// What is set and what is stored of each day is told, for who wants to know what would go.
func TestWhatIsStored(t *testing.T) {
	t.Parallel()
	s := open(t)
	for _, c := range []struct{ days, read uint }{{0, 0}, {30, 30}, {1, 1}, {0, 0}} {
		must(t, s.SetRetention(t.Context(), clickhouse.Retention{RowsDays: &c.days}))
		got, err := s.Retention(t.Context())
		must(t, err)
		if *got.RowsDays != c.read || *got.EventsDays != 0 {
			t.Errorf("after %d days: rows %d, events %d", c.days, *got.RowsDays, *got.EventsDays)
		}
	}
	days := []time.Time{testTime.AddDate(0, 0, -3), testTime}
	for n, at := range []time.Time{days[0], days[1], days[1]} {
		f := factsOf(t, idAt(at, n))
		f.say(1, &executionv1.ProcessStarted{Pid: 1})
		must(t, s.InsertEvents(t.Context(), f.all))
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
	}
	rows, err := s.StoredRows(t.Context())
	must(t, err)
	archived, err := s.StoredEvents(t.Context())
	must(t, err)
	for name, stored := range map[string][]clickhouse.Stored{"rows": rows, "events": archived} {
		if len(stored) != 2 || stored[0].Count != 1 || stored[1].Count != 2 || stored[0].Bytes == 0 || stored[1].Bytes == 0 ||
			!stored[0].Day.Equal(days[0].Truncate(24*time.Hour)) || !stored[1].Day.Equal(days[1].Truncate(24*time.Hour)) {
			t.Errorf("%s: %+v", name, stored)
		}
	}
}

// A row names no file that was removed; what the file was stays, and days that were not removed too.
func TestRemovedArtifacts(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	var ids []string
	for n, at := range []time.Time{testTime.AddDate(0, 0, -1), testTime} {
		f := factsOf(t, idAt(at, n))
		ids = append(ids, f.id)
		f.say(1, &executionv1.OutputRecorded{Artifacts: []*executionv1.Artifact{{
			Stream: executionv1.Stream_STREAM_STDOUT, Uri: "file:///a/stdout.log", SizeBytes: 7, Sha256: make([]byte, 32),
		}}})
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
	}
	for range 2 {
		must(t, s.ArtifactsRemoved(t.Context(), testTime.AddDate(0, 0, -1)))
	}
	listed, err := s.List(t.Context(), clickhouse.Filter{})
	must(t, err)
	if len(listed) != 2 {
		t.Fatalf("%d rows", len(listed))
	}
	for i, id := range ids {
		row, err := s.Row(t.Context(), id)
		must(t, err)
		var viewed *string
		must(t, database(t, dsn).QueryRowContext(t.Context(), "SELECT stdout_log FROM current_executions WHERE execution_id = '"+id+"'").Scan(&viewed))
		for from, uri := range map[string]*string{"row": row.StdoutLog, "list": listed[len(ids)-1-i].StdoutLog, "view": viewed} {
			if gone := i == 0; gone != (uri == nil) {
				t.Errorf("%s of execution %d: %v", from, i, uri)
			}
		}
		if row.StdoutLogBytes == nil || *row.StdoutLogBytes != 7 || row.StdoutLogSHA256 == nil {
			t.Errorf("execution %d: size %v, digest %v", i, row.StdoutLogBytes, row.StdoutLogSHA256)
		}
	}
}
