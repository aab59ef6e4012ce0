package storetest

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// ended is an execution with so many chunks of output and an exit.
func ended(t *testing.T, n, chunks int) *facts {
	t.Helper()
	f := factsOf(t, idAt(testTime, n))
	f.say(1, &executionv1.ProcessStarted{Pid: 1, Runner: "r1"})
	for i := range chunks {
		f.say(1, &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(2 * i), Data: []byte("x\n")})
	}
	f.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: int32(n)}})
	return f
}

func differences(t *testing.T, h *clickhouse.Shadow, partial bool) map[string][]string {
	t.Helper()
	got := map[string][]string{}
	for d, err := range h.Differences(t.Context(), partial) {
		must(t, err)
		switch {
		case d.Live == nil:
			got[d.ExecutionID] = []string{"not live"}
		case d.Rebuilt == nil:
			got[d.ExecutionID] = []string{"not rebuilt"}
		default:
			got[d.ExecutionID] = d.Columns
		}
	}
	return got
}

func TestShadow(t *testing.T) {
	t.Parallel()
	s := open(t)
	same, differs, live, rebuilt := ended(t, 1, 3), ended(t, 2, 3), ended(t, 3, 1), ended(t, 4, 1)
	more := ended(t, 2, 4)
	must(t, s.InsertRows(t.Context(), []*execution.State{same.state(), differs.state(), live.state()}))
	h, err := s.Shadow("rebuilt")
	must(t, err)
	if at, err := h.Position(t.Context()); at != nil || err != nil {
		t.Errorf("before it is made: position %q, %v", at, err)
	}
	must(t, h.Make(t.Context(), []byte("a")))
	must(t, h.InsertRows(t.Context(), []*execution.State{same.state(), more.state(), rebuilt.state()}))
	must(t, h.SavePosition(t.Context(), []byte("b")))
	if at, err := h.Position(t.Context()); string(at) != "b" || err != nil {
		t.Errorf("position %q, %v", at, err)
	}
	want := map[string][]string{
		differs.id: {"ended_at", "facts", "stdout", "stdout_bytes", "version"}, live.id: {"not rebuilt"}, rebuilt.id: {"not live"},
	}
	if diff := cmp.Diff(want, differences(t, h, false)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	delete(want, live.id)
	if diff := cmp.Diff(want, differences(t, h, true)); diff != "" {
		t.Errorf("differences of what was rebuilt (-want +got):\n%s", diff)
	}

	must(t, h.Swap(t.Context()))
	row, err := s.Row(t.Context(), differs.id)
	must(t, err)
	sameRow(t, more.state().Row(), row)
	newer, err := h.Newer(t.Context())
	must(t, err)
	if diff := cmp.Diff(map[string]uint64{live.id: live.state().Version()}, newer); diff != "" {
		t.Errorf("newer in the old table (-want +got):\n%s", diff)
	}
	must(t, h.Make(t.Context(), []byte("c")))
	if n, all, err := h.Count(t.Context()); n != 0 || all != 3 || err != nil {
		t.Errorf("made anew it has %d rows, live %d: %v", n, all, err)
	}
}

func TestShadowIsNobodyElsesTable(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	for _, name := range []string{"", "executions", "events", "replays", "schema_versions", "a b", "x;", "x`", "system.tables", "9"} {
		if _, err := s.Shadow(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
	_, err := database(t, dsn).ExecContext(t.Context(), "CREATE TABLE theirs ENGINE = MergeTree ORDER BY x AS SELECT 1 AS x")
	must(t, err)
	h, err := s.Shadow("theirs")
	must(t, err)
	if err := h.Make(t.Context(), nil); !errors.Is(err, clickhouse.ErrNoShadow) {
		t.Errorf("somebody's table is replaced: %v", err)
	}
}
