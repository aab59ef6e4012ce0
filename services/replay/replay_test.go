package replay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
	embeddedkafka "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/replay"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a log, an archive and live rows of the same executions.
type world struct {
	t     *testing.T
	log   kafka.Config
	store *clickhouse.Store
	ids   []string
	facts int
}

var begun = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func newWorld(t *testing.T, executions int) *world {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Stop(context.Background())) })
	dsn := clickhousetest.Database(t)
	w := &world{t: t, log: kafka.Config{Brokers: []string{broker.Addr()}, Logger: quiet}}
	must(t, wiring.Setup(wiring.Base{Kafka: w.log, Logger: quiet, Registry: telemetry.NewRegistry(), Checks: &telemetry.Checks{}}, dsn, clickhouse.Retention{}, nil).Start(t.Context()))
	w.store, err = clickhouse.Open(t.Context(), dsn)
	must(t, err)
	t.Cleanup(func() { must(t, w.store.Close()) })
	w.tell(executions)
	return w
}

// story is what a runner tells of an execution.
func (w *world) story(n int) []events.Event {
	id := fmt.Sprintf("019366e0-%04x-7000-8000-%012x", 0x7c00+n%7, n)
	w.ids = append(w.ids, id)
	var es []events.Event
	add := func(data proto.Message) {
		e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(id, 1, uint64(len(es)+1), begun.Add(time.Duration(n)*time.Second), data)
		must(w.t, err)
		es = append(es, e)
	}
	add(&executionv1.ProcessStarted{Pid: int64(n + 1), Runner: "r"})
	offset := uint64(0)
	for i := range n % 9 {
		data := []byte(strings.Repeat("x", i*1000+1))
		add(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: offset, Data: data})
		offset += uint64(len(data))
	}
	add(&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: int32(n % 3)}})
	add(&executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
		{Stream: executionv1.Stream_STREAM_STDOUT, CapturedBytes: offset, PublishedBytes: offset}, {Stream: executionv1.Stream_STREAM_STDERR},
	}})
	return es
}

// tell writes the stories to the log, mixed and some of them twice, copies the log into the archive, and folds the live rows.
func (w *world) tell(executions int) {
	random := rand.New(rand.NewPCG(1, 2))
	var stories [][]events.Event
	var live []*execution.State
	for n := range executions {
		stories = append(stories, w.story(n))
		live = append(live, execution.New(stories[n][0].Subject))
	}
	p, err := kafka.NewPublisher(w.log, kafka.PublisherOptions{})
	must(w.t, err)
	var msgs []*message.Message
	next := make([]int, executions)
	for left := executions; left > 0; {
		n := random.IntN(executions)
		if next[n] == len(stories[n]) {
			continue
		}
		for range 1 + random.IntN(2)*random.IntN(2) {
			m, err := codec.ToMessage(stories[n][next[n]])
			must(w.t, err)
			msgs = append(msgs, m)
		}
		w.facts++
		if next[n]++; next[n] == len(stories[n]) {
			left--
		}
	}
	must(w.t, p.Publish(events.TopicExecutions, msgs...))
	must(w.t, p.Close())

	var archived []clickhouse.ArchivedEvent
	admin, err := kafka.NewAdmin(w.log)
	must(w.t, err)
	ends, err := admin.EndOffsets(w.t.Context(), events.TopicExecutions)
	must(w.t, err)
	admin.Close()
	for partition, end := range ends {
		r, err := kafka.NewPartitionReader(w.log, events.TopicExecutions, partition, kafka.First)
		must(w.t, err)
		for end > 0 {
			record, err := r.Next(w.t.Context())
			must(w.t, err)
			e, err := codec.FromMessage(record.Message())
			must(w.t, err)
			archived = append(archived, clickhouse.ArchivedEvent{Event: e, Topic: record.Topic, Partition: partition, Offset: record.Offset, ReceivedAt: record.Time})
			if record.Offset == end-1 {
				break
			}
		}
		r.Close()
	}
	must(w.t, w.store.InsertEvents(w.t.Context(), archived))
	for n, s := range live {
		for _, e := range stories[n] {
			s.Apply(e, begun)
		}
	}
	must(w.t, w.store.InsertRows(w.t.Context(), live))
}

func (w *world) shadow(name string) *clickhouse.Shadow {
	w.t.Helper()
	h, err := w.store.Shadow(name)
	must(w.t, err)
	return h
}

func (w *world) replay(source replay.Source, f replay.Filter, into *clickhouse.Shadow) (replay.Result, error) {
	return replay.Run(w.t.Context(), replay.Config{Source: source, Filter: f, Store: w.store, Into: into, Keep: 5, Logger: slog.New(slog.DiscardHandler)})
}

// same checks that a table holds the live rows and no others.
func (w *world) same(h *clickhouse.Shadow) {
	w.t.Helper()
	for d, err := range h.Differences(w.t.Context(), false) {
		must(w.t, err)
		w.t.Errorf("%s: %s differs in %v (live %t, rebuilt %t)", h.Name(), d.ExecutionID, d.Columns, d.Live != nil, d.Rebuilt != nil)
	}
	if rebuilt, live, err := h.Count(w.t.Context()); rebuilt != live || err != nil {
		w.t.Errorf("%s has %d executions, live are %d: %v", h.Name(), rebuilt, live, err)
	}
}

func (w *world) export(name string) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	file, err := os.Create(path)
	must(w.t, err)
	out := replay.NewWriter(file, path)
	n := 0
	for f, err := range replay.Archive(w.store, replay.Filter{}).Facts(w.t.Context(), nil) {
		must(w.t, err)
		must(w.t, out.Write(f))
		n++
	}
	must(w.t, out.Close())
	must(w.t, file.Close())
	if n != w.facts {
		w.t.Errorf("%d facts exported, there are %d", n, w.facts)
	}
	return path
}

func TestEverySourceGivesTheSameRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 60)
	for name, source := range map[string]replay.Source{
		"from_log": replay.Log(w.log, replay.Filter{}), "from_archive": replay.Archive(w.store, replay.Filter{}),
		"from_lines": replay.File(w.export("all.ndjson")), "from_parquet": replay.File(w.export("all.parquet")),
	} {
		h := w.shadow(name)
		result, err := w.replay(source, replay.Filter{}, h)
		must(t, err)
		if result.Resumed || result.Partial || result.Facts < uint64(w.facts) {
			t.Errorf("%s: %+v of %d facts", name, result, w.facts)
		}
		w.same(h)
	}
}

// stopping ends a source's facts after so many, the way a signal does.
type stopping struct {
	replay.Source
	after int
}

var errStop = errors.New("stop here")

func (s *stopping) Facts(ctx context.Context, position json.RawMessage) iter.Seq2[replay.Fact, error] {
	return func(yield func(replay.Fact, error) bool) {
		n := 0
		for f, err := range s.Source.Facts(ctx, position) {
			if n++; n > s.after {
				yield(replay.Fact{}, errStop)
				return
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

func TestAReplayGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 60)
	lines, columns := w.export("all.ndjson"), w.export("all.parquet")
	for name, source := range map[string]func() replay.Source{
		"log": func() replay.Source { return replay.Log(w.log, replay.Filter{}) }, "archive": func() replay.Source { return replay.Archive(w.store, replay.Filter{}) },
		"lines": func() replay.Source { return replay.File(lines) }, "parquet": func() replay.Source { return replay.File(columns) },
	} {
		h := w.shadow(name)
		for step, after := range []int{1, 100, 40, 150} {
			result, err := w.replaySmall(&stopping{source(), after}, h)
			if !errors.Is(err, errStop) {
				t.Fatalf("%s, step %d: %+v, %v", name, step, result, err)
			}
		}
		if _, err := w.replay(source(), replay.Filter{UntilSequence: 1, Execution: w.ids[0]}, h); err == nil || !strings.Contains(err.Error(), "--restart") {
			t.Errorf("%s: another replay into an unfinished table: %v", name, err)
		}
		result, err := w.replaySmall(source(), h)
		must(t, err)
		if !result.Resumed {
			t.Errorf("%s: began anew", name)
		}
		w.same(h)
		// Finished, it is made anew.
		result, err = w.replay(source(), replay.Filter{}, h)
		must(t, err)
		if result.Resumed {
			t.Errorf("%s: a finished replay went on", name)
		}
		w.same(h)
	}
}

// replaySmall saves its position after every few facts.
func (w *world) replaySmall(source replay.Source, into *clickhouse.Shadow) (replay.Result, error) {
	return replay.Run(w.t.Context(), replay.Config{Source: source, Store: w.store, Into: into, Keep: 2, Batch: 7, SaveEvery: -1, Logger: slog.New(slog.DiscardHandler)})
}

func TestScopes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 20)
	id := w.ids[17]
	for name, f := range map[string]replay.Filter{"sequence": {Execution: id, UntilSequence: 2}, "nothing": {Until: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}} {
		for from, source := range map[string]replay.Source{"log": replay.Log(w.log, f), "archive": replay.Archive(w.store, f)} {
			h := w.shadow(name + "_" + from)
			_, err := w.replay(source, f, h)
			must(t, err)
			rebuilt, _, err := h.Count(t.Context())
			must(t, err)
			if name == "nothing" {
				if rebuilt != 0 {
					t.Errorf("%s: %d rows before anything was", from, rebuilt)
				}
				continue
			}
			row, err := h.Row(t.Context(), id)
			must(t, err)
			if rebuilt != 1 || row.Status != execution.StatusRunning || row.Version != 2 {
				t.Errorf("%s: %d rows, status %s, version %d", from, rebuilt, row.Status, row.Version)
			}
		}
	}
	for _, f := range []replay.Filter{{Execution: "x"}, {UntilSequence: 1}, {Since: begun, Until: begun}} {
		if f.Validate() == nil {
			t.Errorf("%+v is taken", f)
		}
	}
}

func TestSwapKeepsWhatCameMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 10)
	h := w.shadow("next")
	_, err := w.replay(replay.Archive(w.store, replay.Filter{}), replay.Filter{}, h)
	must(t, err)
	// A wrong row is put right, and one that is new is not lost.
	w.tell(11)
	late := w.ids[len(w.ids)-1]
	n, err := replay.Swap(t.Context(), w.store, h)
	must(t, err)
	if n != 1 {
		t.Errorf("%d executions folded again, 1 was new", n)
	}
	row, err := w.store.Row(t.Context(), late)
	must(t, err)
	if row.Status == "" {
		t.Errorf("the new row: %+v", row)
	}
	check := w.shadow("again")
	_, err = w.replay(replay.Archive(w.store, replay.Filter{}), replay.Filter{}, check)
	must(t, err)
	w.same(check)
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	dir := t.TempDir()
	good, err := os.ReadFile(w.export("x.ndjson"))
	must(t, err)
	first, _, _ := strings.Cut(string(good), "\n")
	for name, text := range map[string]string{
		"garbage.ndjson": "nonsense\n", "half.ndjson": first + "\n" + first[:len(first)/2], "subject.ndjson": strings.ReplaceAll(first, w.ids[0], "me"),
		"no.parquet": "PAR1nonsense", "empty.parquet": "",
	} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := w.replay(replay.File(path), replay.Filter{}, w.shadow(strings.ReplaceAll(name, ".", "_")))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSteps(t *testing.T) {
	t.Parallel()
	w := &world{t: t}
	es := w.story(4)
	s := replay.NewSteps(w.ids[0])
	for _, e := range es {
		must(t, s.Add(e, begun))
	}
	for step := range s.Len() + 1 {
		if got, want := s.Row(step), execution.Fold(w.ids[0], es[:step]); got.Version != want.Version || got.Status != want.Status {
			t.Errorf("after %d events: %s version %d, want %s version %d", step, got.Status, got.Version, want.Status, want.Version)
		}
	}
	if got := strings.Join(s.Changed(1), " "); !strings.Contains(got, "pid") || !strings.Contains(got, "status") || strings.Contains(got, "exit_code") {
		t.Errorf("the start changed %s", got)
	}
	if err := s.Add(events.Event{Subject: w.ids[0], Payload: make([]byte, replay.MaxStepBytes)}, begun); !errors.Is(err, replay.ErrTooMany) {
		t.Errorf("more than fits: %v", err)
	}
}
