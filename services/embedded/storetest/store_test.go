package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

// open returns a store with its tables in a database of its own.
func open(t *testing.T) *clickhouse.Store {
	t.Helper()
	s := connect(t, clickhousetest.Database(t))
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, dsn string) *clickhouse.Store {
	t.Helper()
	s, err := clickhouse.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var testTime = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

// idAt is an execution id of a millisecond, number n in it.
func idAt(at time.Time, n int) string {
	ms := at.UnixMilli()
	return fmt.Sprintf("%08x-%04x-7000-8000-%012x", ms>>16, ms&0xffff, n)
}

// facts builds events of one execution in order, as one producer says them.
type facts struct {
	t        *testing.T
	id       string
	producer events.Producer
	next     map[uint32]uint64
	all      []clickhouse.ArchivedEvent
}

func factsOf(t *testing.T, id string) *facts {
	return &facts{t: t, id: id, producer: events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}, next: map[uint32]uint64{}}
}

func (f *facts) say(attempt uint32, data proto.Message) clickhouse.ArchivedEvent {
	f.t.Helper()
	f.next[attempt]++
	e, err := f.producer.Event(f.id, attempt, f.next[attempt], testTime.Add(time.Duration(len(f.all))), data)
	if err != nil {
		f.t.Fatal(err)
	}
	a := clickhouse.ArchivedEvent{
		Event: e, Topic: events.TopicExecutions, Partition: 3, Offset: int64(len(f.all)),
		ReceivedAt: testTime.Add(time.Second), Headers: [][2]string{{"ce_id", e.ID}, {"ce_id", "twice"}, {"x", "\xff\x00"}},
	}
	f.all = append(f.all, a)
	return a
}

func (f *facts) chunk(attempt uint32, stream executionv1.Stream, offset uint64, data []byte) clickhouse.ArchivedEvent {
	f.t.Helper()
	return f.say(attempt, &executionv1.OutputChunk{Stream: stream, Offset: offset, Data: data})
}

func (f *facts) state() *execution.State {
	s := execution.New(f.id)
	for _, a := range f.all {
		s.Apply(a.Event, a.ReceivedAt)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	must(t, err)
	return string(b)
}

func sameRow(t *testing.T, want, got execution.Row) {
	t.Helper()
	if diff := cmp.Diff(asJSON(t, want), asJSON(t, got)); diff != "" {
		t.Fatalf("the row is not what was written:\n%s", diff)
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func jsonFields(t *testing.T, v any) map[string]any {
	t.Helper()
	var fields map[string]any
	must(t, json.Unmarshal([]byte(asJSON(t, v)), &fields))
	return fields
}
