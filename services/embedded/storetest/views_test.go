package storetest

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// office is a database with a known day in it.
type office struct {
	t     *testing.T
	db    *sql.DB
	store *clickhouse.Store
	// failed says text in two chunks, cut in the middle of a line, and exits with 3; quiet succeeds; open still runs.
	failed, quiet, open *facts
}

func newOffice(t *testing.T) *office {
	t.Helper()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	o := &office{t: t, db: database(t, dsn), store: s}
	o.failed, o.quiet, o.open = factsOf(t, idAt(testTime, 1)), factsOf(t, idAt(testTime.Add(time.Hour), 2)), factsOf(t, idAt(testTime, 3))
	for i, f := range []*facts{o.failed, o.quiet, o.open} {
		f.say(1, &executionv1.Prepared{Argv: []string{"tool"}, Action: "build", RequestedAt: timestamppb.New(testTime)})
		f.say(1, &executionv1.ProcessStarted{Pid: int64(i), ProcessStartedAt: timestamppb.New(testTime), Runner: "r1", Host: "h"})
	}
	chunk := func(f *facts, stream executionv1.Stream, offset int, text string) {
		f.say(1, &executionv1.OutputChunk{Stream: stream, Offset: uint64(offset), Data: []byte(text)})
	}
	chunk(o.failed, executionv1.Stream_STREAM_STDOUT, 0, "first line\nsecond ")
	chunk(o.failed, executionv1.Stream_STREAM_STDERR, 0, "Connection REFUSED by host-7\n\xff\n")
	chunk(o.failed, executionv1.Stream_STREAM_STDOUT, 18, "line\n\nlast without end")
	chunk(o.open, executionv1.Stream_STREAM_STDOUT, 0, "refused is not a connection\n")
	end := func(f *facts, code int32) {
		f.say(1, &executionv1.ProcessExited{
			Status: &executionv1.ProcessExited_ExitCode{ExitCode: code}, EndedAt: timestamppb.New(testTime.Add(2 * time.Second)),
			Usage: &executionv1.ResourceUsage{UserTime: durationpb.New(time.Second), MaxResidentBytes: 1 << 20},
		})
	}
	end(o.failed, 3)
	end(o.quiet, 0)
	o.quiet.say(1, &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
		{Stream: executionv1.Stream_STREAM_STDOUT}, {Stream: executionv1.Stream_STREAM_STDERR},
	}})
	for _, f := range []*facts{o.failed, o.quiet, o.open} {
		must(t, s.InsertEvents(t.Context(), f.all))
		must(t, s.InsertEvents(t.Context(), f.all)) // Copies that are not merged yet change nothing.
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
		must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
	}
	return o
}

// ask returns a result as lines of cells.
func (o *office) ask(query string) string {
	o.t.Helper()
	rows, err := o.db.QueryContext(o.t.Context(), query)
	must(o.t, err)
	defer rows.Close()
	columns, err := rows.Columns()
	must(o.t, err)
	var out strings.Builder
	for rows.Next() {
		cells, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range cells {
			into[i] = &cells[i]
		}
		must(o.t, rows.Scan(into...))
		for i, c := range cells {
			if i > 0 {
				out.WriteString(" | ")
			}
			fmt.Fprint(&out, c)
		}
		out.WriteString("\n")
	}
	must(o.t, rows.Err())
	return out.String()
}

func TestViews(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	day := testTime.Format(time.DateOnly)
	for name, test := range map[string]struct{ query, want string }{
		"current_executions": {
			"SELECT execution_id, status FROM current_executions WHERE created_day = '" + day + "' ORDER BY execution_id",
			o.failed.id + " | failed\n" + o.open.id + " | running\n" + o.quiet.id + " | succeeded\n",
		},
		"output_lines": {
			"SELECT stream, line_number, offset, line FROM output_lines WHERE execution_id = '" + o.failed.id + "' ORDER BY stream, line_number",
			"stderr | 1 | 0 | Connection REFUSED by host-7\nstderr | 2 | 29 | \uFFFD\n" +
				"stdout | 1 | 0 | first line\nstdout | 2 | 11 | second line\nstdout | 3 | 23 | \nstdout | 4 | 24 | last without end\n",
		},
		"attempts": {
			"SELECT runner, end_event, sealed, stdout_bytes, stderr_bytes, facts FROM attempts ORDER BY execution_id",
			"r1 | ProcessExited | false | 40 | 31 | 6\nr1 |  | false | 28 | 0 | 3\nr1 | ProcessExited | true | 0 | 0 | 4\n",
		},
		"outcomes_by_hour": {
			"SELECT action, status, executions, duration_ms_p50, duration_ms_max FROM outcomes_by_hour WHERE created_day = '" + day + "' ORDER BY status",
			"build | failed | 1 | 2000 | 2000\nbuild | running | 1 | <nil> | <nil>\nbuild | succeeded | 1 | 2000 | 2000\n",
		},
		"failure_reasons": {
			"SELECT reason, error_source, error, executions, example FROM failure_reasons WHERE created_day = '" + day + "'",
			"exit_code | stderr | Connection REFUSED by host-7 | 1 | " + o.failed.id + "\n",
		},
		"runner_utilisation": {
			"SELECT runner, executions, busy_seconds, cpu_seconds, max_resident_bytes FROM runner_utilisation WHERE created_day = '" + day + "'",
			"r1 | 3 | 4 | 2 | 1048576\n",
		},
		"incomplete_executions": {
			"SELECT execution_id, status, why, missing_bytes FROM incomplete_executions WHERE created_day = '" + day + "'",
			o.failed.id + " | failed | not sealed | 0\n",
		},
	} {
		if diff := cmp.Diff(test.want, o.ask(test.query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if got := o.ask("SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = '" + name + "' AND type = ''"); got != "0\n" {
			t.Errorf("%s has columns without a type: %s", name, got)
		}
		reads := map[string]string{"output_lines": "execution_id in", "current_executions": "created_day in"}[name]
		if reads == "" {
			reads = "created_day in"
		}
		if name == "attempts" {
			test.query = "SELECT * FROM attempts WHERE execution_id = '" + o.failed.id + "'"
			reads = "execution_id in"
		}
		if plan := o.ask("EXPLAIN indexes = 1 " + test.query); !strings.Contains(plan, reads) {
			t.Errorf("%s does not read by %q:\n%.3000s", name, reads, plan)
		}
	}
}

// Words are found by the index, in Protobuf and in JSON payloads.
func TestWordsAreIndexed(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	f := factsOf(t, idAt(testTime, 9))
	f.say(1, &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Data: []byte("from a foreign producer: connection refused")})
	e := &f.all[0].Event
	var err error
	e.Payload, err = protojson.Marshal(e.Data)
	must(t, err)
	e.ContentType = events.ContentTypeJSON
	must(t, o.store.InsertEvents(t.Context(), f.all))
	query := "SELECT DISTINCT execution_id FROM events WHERE hasAllTokens(lower(output), tokens('connection refused', 'splitByNonAlpha')) AND position(lower(output), 'connection refused') > 0 ORDER BY execution_id"
	if diff := cmp.Diff(o.failed.id+"\n"+f.id+"\n", o.ask(query)); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if plan := o.ask("EXPLAIN indexes = 1 " + query); !strings.Contains(plan, "by_word") {
		t.Errorf("the index of words is not used:\n%.3000s", plan)
	}
}
