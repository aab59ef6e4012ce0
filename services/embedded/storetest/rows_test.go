package storetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// A row with every column filled in comes back byte for byte, and so does one of which nothing is known.
func TestRowRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t)
	full, empty := execution.New(eventstest.ExecutionID), execution.New(idAt(testTime, 1))
	for _, e := range eventstest.Undeleted() {
		full.Apply(e, eventstest.Time)
	}
	must(t, s.InsertRows(t.Context(), []*execution.State{full, empty}))
	for _, state := range []*execution.State{full, empty} {
		got, err := s.Row(t.Context(), state.ID())
		must(t, err)
		sameRow(t, state.Row(), got)
	}
}

func TestRowNotFound(t *testing.T) {
	t.Parallel()
	s := open(t)
	for _, id := range []string{idAt(testTime, 7), "no id at all", ""} {
		if _, err := s.Row(t.Context(), id); !errors.Is(err, clickhouse.ErrNotFound) {
			t.Errorf("row of %q: %v, want ErrNotFound", id, err)
		}
	}
}

// A row with more knowledge stays, whatever was written last.
func TestRowOfGreatestVersion(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	f.say(1, &executionv1.ProcessStarted{Pid: 1, Runner: "r1"})
	older := f.state()
	f.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 3}})
	newer := f.state()
	for _, state := range []*execution.State{older, newer, older, older} {
		must(t, s.InsertRows(t.Context(), []*execution.State{state}))
	}
	got, err := s.Row(t.Context(), f.id)
	must(t, err)
	sameRow(t, newer.Row(), got)
	rows, err := s.List(t.Context(), clickhouse.Filter{})
	must(t, err)
	if len(rows) != 1 || rows[0].Status != execution.StatusFailed {
		t.Fatalf("list has %d rows, want the one that failed: %s", len(rows), asJSON(t, rows))
	}
	// It was running once; no part of the table that still says so may be found.
	rows, err = s.List(t.Context(), clickhouse.Filter{Status: execution.StatusRunning})
	must(t, err)
	if len(rows) != 0 {
		t.Fatalf("an older version is listed: %s", asJSON(t, rows))
	}
}

// A projector that starts again loads the state and goes on as if it had never stopped.
func TestLoadStatesAndGoOn(t *testing.T) {
	t.Parallel()
	s := open(t)
	const count = 250 // more than one query's worth
	var halves []*execution.State
	var ids []string
	all := make([]*facts, count)
	for i := range all {
		f := factsOf(t, idAt(testTime.Add(time.Duration(i)*time.Hour), i))
		f.say(1, &executionv1.ProcessStarted{Pid: 1})
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("a\x00\xff"))
		halves = append(halves, f.state())
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, 3, []byte(fmt.Sprint("number ", i)))
		f.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}})
		all[i] = f
		ids = append(ids, f.id)
	}
	must(t, s.InsertRows(t.Context(), halves))
	loaded, err := s.LoadStates(t.Context(), append(ids, idAt(testTime, 99999)))
	must(t, err)
	if len(loaded) != count {
		t.Fatalf("%d states were loaded, want %d", len(loaded), count)
	}
	for _, f := range all {
		state := loaded[f.id]
		for _, a := range f.all {
			state.Apply(a.Event, a.ReceivedAt)
		}
		sameRow(t, f.state().Row(), state.Row())
	}
}

// A state that cannot be read is named, and does not take the others with it.
func TestLoadStatesWithADamagedOne(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	good := factsOf(t, idAt(testTime, 1))
	good.say(1, &executionv1.ProcessStarted{Pid: 1})
	must(t, s.InsertRows(t.Context(), []*execution.State{good.state()}))
	damaged := idAt(testTime, 2)
	exec(t, dsn, "INSERT INTO executions (created_day, execution_id, state, version) VALUES ('2026-11-25', '"+damaged+"', 'no state', 1)")
	loaded, err := s.LoadStates(t.Context(), []string{damaged, good.id})
	if !errors.Is(err, execution.ErrState) || !strings.Contains(err.Error(), damaged) {
		t.Errorf("the error is %v", err)
	}
	if len(loaded) != 1 || loaded[good.id] == nil {
		t.Fatalf("loaded are %v", loaded)
	}
}

func TestLoadStatesOfNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	loaded, err := s.LoadStates(t.Context(), nil)
	must(t, err)
	if len(loaded) != 0 {
		t.Fatalf("%d states were loaded of none", len(loaded))
	}
	if _, err := s.LoadStates(t.Context(), []string{"x') OR 1"}); err == nil {
		t.Fatal("an id that is none was asked for without an error")
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := open(t)
	var states []*execution.State
	var ids []string // oldest first
	for i := range 40 {
		id := idAt(testTime.Add(time.Duration(i)*5*time.Hour), i) // 40 executions over 9 days
		f := factsOf(t, id)
		f.say(1, &executionv1.Prepared{Argv: []string{"x"}, Labels: map[string]string{"parity": fmt.Sprint(i % 2), "quo'te": `\{x:String}`}})
		if i%4 == 0 {
			f.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}})
			f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("output"))
		}
		states, ids = append(states, f.state()), append(ids, id)
	}
	must(t, s.InsertRows(t.Context(), states))
	must(t, s.InsertRows(t.Context(), states))

	reversed := func(keep func(i int) bool) []string {
		var out []string
		for i := len(ids) - 1; i >= 0; i-- {
			if keep(i) {
				out = append(out, ids[i])
			}
		}
		return out
	}
	cases := map[string]struct {
		filter clickhouse.Filter
		want   []string
	}{
		"everything":   {clickhouse.Filter{}, reversed(func(int) bool { return true })},
		"status":       {clickhouse.Filter{Status: execution.StatusSucceeded}, reversed(func(i int) bool { return i%4 == 0 })},
		"no such":      {clickhouse.Filter{Status: "' OR 1 --"}, nil},
		"labels":       {clickhouse.Filter{Labels: map[string]string{"parity": "1", "quo'te": `\{x:String}`}}, reversed(func(i int) bool { return i%2 == 1 })},
		"absent label": {clickhouse.Filter{Labels: map[string]string{"absent": ""}}, nil},
		"since":        {clickhouse.Filter{Since: testTime.Add(30 * 5 * time.Hour)}, reversed(func(i int) bool { return i >= 30 })},
		"since later":  {clickhouse.Filter{Since: testTime.AddDate(1, 0, 0)}, nil},
		"since ages":   {clickhouse.Filter{Since: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}, nil},
		"before":       {clickhouse.Filter{Before: ids[10]}, reversed(func(i int) bool { return i < 10 })},
		"limit":        {clickhouse.Filter{Limit: 7}, reversed(func(i int) bool { return i >= 33 })},
		"all at once":  {clickhouse.Filter{Status: execution.StatusSucceeded, Before: ids[20], Since: testTime.Add(5 * 5 * time.Hour), Limit: 2}, []string{ids[16], ids[12]}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rows, err := s.List(t.Context(), c.filter)
			must(t, err)
			var got []string
			for _, r := range rows {
				got = append(got, r.ExecutionID)
				if r.Stdout != nil {
					t.Errorf("row %s of a list has a preview", r.ExecutionID)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}

	t.Run("pages", func(t *testing.T) {
		t.Parallel()
		var got []string
		for before := ""; ; before = got[len(got)-1] {
			rows, err := s.List(t.Context(), clickhouse.Filter{Limit: 9, Before: before})
			must(t, err)
			if len(rows) == 0 {
				break
			}
			for _, r := range rows {
				got = append(got, r.ExecutionID)
			}
		}
		if diff := cmp.Diff(reversed(func(int) bool { return true }), got); diff != "" {
			t.Fatal(diff)
		}
	})

	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		_, err := s.List(t.Context(), clickhouse.Filter{Limit: -1, Before: "x"})
		if err == nil {
			t.Fatal("a wrong filter was taken")
		}
		t.Log(err)
	})
}
