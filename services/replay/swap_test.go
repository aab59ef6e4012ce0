package replay

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tables are an archive, live rows and rebuilt ones.
type tables struct {
	t       *testing.T
	store   *clickhouse.Store
	rebuilt *clickhouse.Shadow
}

func newTables(t *testing.T) *tables {
	t.Helper()
	b := &tables{t: t}
	var err error
	b.store, err = clickhouse.Open(t.Context(), clickhousetest.Database(t))
	must(t, err)
	t.Cleanup(func() { must(t, b.store.Close()) })
	must(t, b.store.Migrate(t.Context()))
	b.rebuilt, err = b.store.Shadow("rebuilt")
	must(t, err)
	must(t, b.rebuilt.Make(t.Context(), nil))
	return b
}

// told is an execution that started, wrote two chunks and ended.
func (b *tables) told(n int) (id string, es []events.Event) {
	id = fmt.Sprintf("019366e0-7c00-7000-8000-%012x", n)
	for i, data := range []proto.Message{
		&executionv1.ProcessStarted{Pid: 1, Runner: "r"},
		&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Data: []byte("x\n")},
		&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: 2, Data: []byte("y\n")},
		&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}},
	} {
		e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(id, 1, uint64(i+1), time.Unix(1e9, 0), data)
		must(b.t, err)
		es = append(es, e)
	}
	return id, es
}

func folded(id string, es []events.Event) []*execution.State {
	s := execution.New(id)
	for _, e := range es {
		s.Apply(e, time.Time{})
	}
	return []*execution.State{s}
}

func (b *tables) archive(es []events.Event) {
	b.t.Helper()
	var archived []clickhouse.ArchivedEvent
	for i, e := range es {
		archived = append(archived, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: int64(i), ReceivedAt: time.Unix(1e9, 0)})
	}
	must(b.t, b.store.InsertEvents(b.t.Context(), archived))
}

func (b *tables) ended(id string, facts int) {
	b.t.Helper()
	row, err := b.store.Row(b.t.Context(), id)
	must(b.t, err)
	if row.Status != execution.StatusSucceeded || row.Version != uint64(facts) || row.Stdout == nil || *row.Stdout != "x\ny\n" {
		b.t.Errorf("%s is %s with version %d of %d", id, row.Status, row.Version, facts)
	}
}

// The recorder is behind the projector: what the old row knows and the archive does not is in the new one.
func TestSwapLosesNothingThatIsNotArchivedYet(t *testing.T) {
	t.Parallel()
	b := newTables(t)
	id, es := b.told(1)
	must(t, b.store.InsertRows(t.Context(), folded(id, es)))
	b.archive(es[:2])
	must(t, b.rebuilt.InsertRows(t.Context(), folded(id, es[:2])))
	n, err := Swap(t.Context(), b.store, b.rebuilt)
	must(t, err)
	if n != 1 {
		t.Errorf("%d executions were carried over, want 1", n)
	}
	b.ended(id, len(es))
}

// Rows that were on their way when the tables were exchanged land in the old one: they are found there later.
func TestSwapTakesWhatCameToTheOldTable(t *testing.T) {
	t.Parallel()
	b := newTables(t)
	first, es := b.told(1)
	second, others := b.told(2)
	for id, es := range map[string][]events.Event{first: es, second: others} {
		b.archive(es[:1])
		for _, r := range []rows{b.store, b.rebuilt} {
			must(t, r.InsertRows(t.Context(), folded(id, es[:1])))
		}
	}
	waits := 0
	_, err := swap(t.Context(), b.store, b.rebuilt, func(ctx context.Context) error {
		switch waits++; waits {
		case 1:
			return b.rebuilt.InsertRows(ctx, folded(first, es))
		case 2: // Something came a moment ago, so more may come.
			return b.rebuilt.InsertRows(ctx, folded(second, others))
		}
		return nil
	})
	must(t, err)
	b.ended(first, len(es))
	b.ended(second, len(others))
	if waits != 4 {
		t.Errorf("it looked again %d times, want two times after what came last", waits)
	}
}

// unreadable is a table with states that a newer program wrote.
type unreadable struct{ rows }

func (unreadable) LoadStates(context.Context, []string) (map[string]*execution.State, error) {
	return nil, execution.ErrState
}

// What can neither be folded whole nor read is no row to put in the place of another one.
func TestSwapWithoutTheStateOfANewerRow(t *testing.T) {
	t.Parallel()
	b := newTables(t)
	id, es := b.told(1)
	must(t, b.store.InsertRows(t.Context(), folded(id, es[:3])))
	newer := map[string]uint64{id: uint64(len(es))}
	c := carrier{archive: b.store, versions: map[string]uint64{}}
	b.archive(es[:2])
	if n, err := c.carry(t.Context(), newer, unreadable{b.rebuilt}, b.store); n != 0 || !errors.Is(err, execution.ErrState) {
		t.Errorf("%d carried, error %v", n, err)
	}
	row, err := b.store.Row(t.Context(), id)
	must(t, err)
	if row.Version != 3 {
		t.Errorf("the row has version %d, it had 3", row.Version)
	}
	b.archive(es)
	if n, err := c.carry(t.Context(), newer, unreadable{b.rebuilt}, b.store); n != 1 || err != nil {
		t.Errorf("%d carried, error %v", n, err)
	}
	b.ended(id, len(es))
}
