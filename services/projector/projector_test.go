package projector

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table keeps rows as the real one does: the highest version of each wins.
type table struct {
	mu     sync.Mutex
	states map[string][]byte
	loads  int
	fail   int // So many inserts fail first.
	// damaged executions' states cannot be read; archived is what is known of them.
	damaged  map[string]bool
	archived []events.Event
}

func (t *table) Row(_ context.Context, id string) (execution.Row, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.states[id] == nil {
		return execution.Row{}, clickhouse.ErrNotFound
	}
	s, err := execution.Load(t.states[id])
	if err != nil {
		return execution.Row{}, err
	}
	return s.Row(), nil
}

func (t *table) Events(_ context.Context, id string, _ int64) iter.Seq2[clickhouse.ArchivedEvent, error] {
	return func(yield func(clickhouse.ArchivedEvent, error) bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, e := range t.archived {
			if e.Subject == id && !yield(clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, ReceivedAt: begun}, nil) {
				return
			}
		}
	}
}

func newTable() *table { return &table{states: map[string][]byte{}} }

func (t *table) LoadStates(_ context.Context, ids []string) (map[string]*execution.State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loads++
	loaded := map[string]*execution.State{}
	var damaged error
	for _, id := range ids {
		if t.damaged[id] {
			damaged = execution.ErrState
			continue
		}
		if b := t.states[id]; b != nil {
			s, err := execution.Load(b)
			if err != nil {
				return nil, err
			}
			loaded[id] = s
		}
	}
	return loaded, damaged
}

func (t *table) InsertRows(_ context.Context, states []*execution.State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail > 0 {
		t.fail--
		return errors.New("database is away")
	}
	for _, s := range states {
		b, err := s.MarshalBinary()
		if err != nil {
			return err
		}
		id := s.Row().ExecutionID
		if old := t.states[id]; old != nil {
			before, err := execution.Load(old)
			if err != nil {
				return err
			}
			if before.Version() > s.Version() {
				continue
			}
		}
		t.states[id] = b
	}
	return nil
}

func (t *table) EraseRows(context.Context, []string) error { return nil } // A row here is the newest one alone.

func (t *table) row(tb testing.TB, id string) execution.Row {
	tb.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := execution.Load(t.states[id])
	if err != nil {
		tb.Fatalf("row of %s: %v", id, err)
	}
	return s.Row()
}

func open(t *testing.T, rows *table, keep int) *Projector {
	t.Helper()
	p, err := New(rows, rows, 12, keep, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

var begun = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func id(n int) string { return fmt.Sprintf("019366e0-7c00-7000-8000-%012x", n) }

// story is what a runner tells of an execution that writes n chunks.
func story(t *testing.T, execution string, n int) []events.Event {
	t.Helper()
	var es []events.Event
	add := func(data proto.Message) {
		e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(execution, 1, uint64(len(es)+1), begun, data)
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	add(&executionv1.ProcessStarted{Pid: 1, Runner: "r"})
	for i := range n {
		add(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(2 * i), Data: []byte("x\n")})
	}
	add(&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}})
	add(&executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
		{Stream: executionv1.Stream_STREAM_STDOUT, CapturedBytes: uint64(2 * n), PublishedBytes: uint64(2 * n)},
		{Stream: executionv1.Stream_STREAM_STDERR},
	}})
	return es
}

func facts(es []events.Event, partition int, assignment uint64) []Fact {
	var fs []Fact
	for i, e := range es {
		fs = append(fs, Fact{e, kafka.Position{Partition: partition, Offset: int64(i), Time: begun, Assignment: assignment}})
	}
	return fs
}

func TestRowsAreFoldedOverBatchesAndEvictions(t *testing.T) {
	t.Parallel()
	rows := newTable()
	p := open(t, rows, 1) // Every other execution pushes the one before out.
	for n := range 5 {
		for i := range 4 {
			es := story(t, id(n), 6)
			if err := p.Fold(t.Context(), facts(es[i*2:i*2+3], n, 1)); err != nil { // Each batch overlaps the next.
				t.Fatal(err)
			}
			other := story(t, id(100), 1)
			if err := p.Fold(t.Context(), facts(other, 50, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range 5 {
		if diff := cmp.Diff(execution.Fold(id(n), story(t, id(n), 6)), rows.row(t, id(n))); diff != "" {
			t.Errorf("row %d (-folded at once +projected):\n%s", n, diff)
		}
	}
}

// A partition that was elsewhere in between may have been folded further there.
func TestAStateOfAnEarlierAssignmentIsNotTrusted(t *testing.T) {
	t.Parallel()
	rows := newTable()
	here, elsewhere := open(t, rows, 10), open(t, rows, 10)
	es := story(t, id(1), 6)
	for _, step := range []struct {
		p     *Projector
		facts []Fact
	}{
		{here, facts(es[:3], 0, 1)},
		{elsewhere, facts(es[3:6], 0, 1)},
		{here, facts(es[6:], 0, 2)},
	} {
		if err := step.p.Fold(t.Context(), step.facts); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(execution.Fold(id(1), es), rows.row(t, id(1))); diff != "" {
		t.Errorf("row (-folded at once +projected):\n%s", diff)
	}
}

// Facts that were folded and not stored come again, and must then be stored although they are nothing new to
// the state in memory.
func TestWhatWasFoldedAndNotStoredIsStoredLater(t *testing.T) {
	t.Parallel()
	rows := newTable()
	p := open(t, rows, 10)
	es := story(t, id(1), 2)
	rows.fail = 1000
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Fold(gone, facts(es, 0, 1)); err == nil {
		t.Fatal("a row that was not stored is no error")
	}
	rows.fail = 0
	if err := p.Fold(t.Context(), facts(es, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(execution.Fold(id(1), es), rows.row(t, id(1))); diff != "" {
		t.Errorf("row (-folded at once +projected):\n%s", diff)
	}
}

func TestKnownStatesAreNotLoadedAgain(t *testing.T) {
	t.Parallel()
	rows := newTable()
	p := open(t, rows, 10)
	es := story(t, id(1), 20)
	for i := range es {
		if err := p.Fold(t.Context(), facts(es[i:i+1], 0, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if rows.loads != 1 {
		t.Errorf("%d loads for one execution", rows.loads)
	}
}

func TestAStateThatCannotBeReadIsRebuiltFromTheArchive(t *testing.T) {
	t.Parallel()
	rows := newTable()
	damaged, healthy := story(t, id(1), 6), story(t, id(2), 6)
	if err := open(t, rows, 10).Fold(t.Context(), append(facts(damaged[:4], 0, 1), facts(healthy[:4], 0, 1)...)); err != nil {
		t.Fatal(err)
	}
	rows.damaged = map[string]bool{id(1): true}
	next := append(facts(damaged[4:], 0, 1), facts(healthy[4:], 0, 1)...)

	// While the archive is behind the row, nothing is stored: the row would lose what it has.
	rows.archived = damaged[:2]
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := open(t, rows, 10).Fold(soon, next); err == nil {
		t.Error("a row was rebuilt from less than it holds")
	}
	rows.archived = damaged[:4]
	if err := open(t, rows, 10).Fold(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	for n, es := range map[int][]events.Event{1: damaged, 2: healthy} {
		if diff := cmp.Diff(execution.Fold(id(n), es), rows.row(t, id(n))); diff != "" {
			t.Errorf("row %d (-folded at once +projected):\n%s", n, diff)
		}
	}
}

// Facts that come again, all of them, as after a group was set back: they change nothing, and the states that they were compared with
// leave as others do.
func TestStatesOfFactsThatSayNothingNewLeave(t *testing.T) {
	t.Parallel()
	rows := newTable()
	first, again := open(t, rows, 2), open(t, rows, 2)
	for _, p := range []*Projector{first, again} {
		for n := range 10 {
			if err := p.Fold(t.Context(), facts(story(t, id(n), 3), 0, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if kept := p.states.recent.Len(); kept != 2 || len(p.states.byID) != 2 {
			t.Errorf("%d states are kept, want 2", kept)
		}
	}
}

// However many states may stay, they stay within a bound of bytes; the newest stays in any case.
func TestStatesLeaveWhenTheyAreLarge(t *testing.T) {
	t.Parallel()
	rows := newTable()
	p := open(t, rows, 1000)
	size := execution.New(id(0)).Size()
	p.states.keepBytes = 5 * size
	for n := range 100 {
		if err := p.Fold(t.Context(), facts(story(t, id(n), 3), n%3, 1)); err != nil {
			t.Fatal(err)
		}
		if kept := p.states.recent.Len(); kept > 5 || kept == 0 {
			t.Fatalf("%d states are kept, at most 5 have room", kept)
		}
	}
	p.states.forget(0)
	p.states.forget(1)
	p.states.forget(2)
	if p.states.bytes != 0 {
		t.Errorf("%d bytes are counted for no state", p.states.bytes)
	}
}

// An execution of which more producers or ids of a foreign form speak than are kept is no reason to forget what else is said of it: the
// row in the table has it, however often its state left in between.
func TestBeyondTheLimitsTheRowIsStored(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(e *events.Event, n int){
		"foreign ids": func(e *events.Event, n int) { e.ID = fmt.Sprint("build-", n) },
		"producers": func(e *events.Event, n int) {
			if n < 1024 {
				e.ID = events.ID(e.Subject, e.Attempt, fmt.Sprint("gateway.", n), e.Sequence)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var es []events.Event
			for range 1024 {
				e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(id(1), 0, 1, begun, &executionv1.CancelRequested{RequestedBy: "me"})
				if err != nil {
					t.Fatal(err)
				}
				es = append(es, e)
			}
			es = append(es, story(t, id(1), 3)...)
			for n := range es {
				limit(&es[n], n)
			}
			rows := newTable()
			p := open(t, rows, 1)
			for batch := range slices.Chunk(facts(es, 0, 1), 1024) {
				for _, fs := range [][]Fact{batch, facts(story(t, id(100), 1), 1, 1)} { // The second pushes the first's state out.
					if err := p.Fold(t.Context(), fs); err != nil {
						t.Fatal(err)
					}
				}
			}
			row := rows.row(t, id(1))
			if diff := cmp.Diff(execution.Fold(id(1), es), row); diff != "" || row.Status != execution.StatusSucceeded || len(row.Contradictions) == 0 {
				t.Errorf("%s, row (-folded at once +projected):\n%s", row.Status, diff)
			}
		})
	}
}
