package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/tail"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) } // It looks for leaked goroutines, too.

// world is what the gateway stands on, in memory: a log, and the rows and the archive that are made of the
// log as far as the test lets projector and recorder come.
type world struct {
	t  *testing.T
	mu sync.Mutex
	// grown is closed and replaced at every change.
	grown     chan struct{}
	log       []record
	byPlace   map[int][]record // The log, by partition; the index is the offset.
	requests  []*message.Message
	control   []*message.Message
	stdin     []*message.Message
	projected int
	recorded  int
	rows      map[string]folded
	// lost are offsets that never reach the archive.
	lost map[int]bool
	// away make Kafka or the database fail.
	kafkaAway, databaseAway error
}

// folded is a row and how much of the log is in it.
type folded struct {
	projected int
	row       execution.Row
}

type record struct {
	event events.Event
	// partition and offset are of the execution's own partition.
	partition int
	offset    int64
	at        time.Time
}

func newWorld(t *testing.T) *world {
	return &world{t: t, grown: make(chan struct{}), lost: map[int]bool{}, byPlace: map[int][]record{}, rows: map[string]folded{}}
}

func partition(id string) int { return kafka.PartitionFor([]byte(id), 12) }

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.grown)
	w.grown = make(chan struct{})
}

// append writes events to the log.
func (w *world) append(es ...events.Event) {
	w.change(func() {
		for _, e := range es {
			p := partition(e.Subject)
			r := record{e, p, w.end(p), time.Now()}
			w.log = append(w.log, r)
			w.byPlace[p] = append(w.byPlace[p], r)
		}
	})
}

// store lets projector and recorder catch up.
func (w *world) store() {
	w.change(func() { w.projected, w.recorded = len(w.log), len(w.log) })
}

func (w *world) end(p int) int64 { return int64(len(w.byPlace[p])) }

func offsetsOf(log []record) map[int]int64 {
	out := map[int]int64{}
	for _, r := range log {
		out[r.partition] = r.offset + 1
	}
	return out
}

func (w *world) EndOffsets(_ context.Context, topic string) (map[int]int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if topic == events.TopicStdin { // Every partition as long as all of them together.
		ends := map[int]int64{}
		for p := range 6 {
			ends[p] = int64(len(w.stdin)) + 7
		}
		return ends, w.kafkaAway
	}
	if topic != events.TopicExecutions {
		return map[int]int64{}, w.kafkaAway
	}
	return offsetsOf(w.log), w.kafkaAway
}

func (w *world) CommittedOffsets(_ context.Context, group, _ string) (map[int]int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if group == "projector" {
		return offsetsOf(w.log[:w.projected]), w.kafkaAway
	}
	return offsetsOf(w.log[:w.recorded]), w.kafkaAway
}

func (w *world) PublishContext(ctx context.Context, topic string, messages ...*message.Message) error {
	w.mu.Lock()
	away := w.kafkaAway
	w.mu.Unlock()
	if away != nil {
		<-ctx.Done()
		return away
	}
	w.change(func() {
		switch topic {
		case events.TopicRequests:
			w.requests = append(w.requests, messages...)
		case events.TopicControl:
			w.control = append(w.control, messages...)
		case events.TopicStdin:
			w.stdin = append(w.stdin, messages...)
		default:
			w.t.Errorf("the gateway wrote to %s", topic)
		}
	})
	return nil
}

func (w *world) Row(_ context.Context, id string) (execution.Row, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.databaseAway != nil {
		return execution.Row{}, w.databaseAway
	}
	if c := w.rows[id]; c.projected == w.projected && c.row.Version > 0 {
		return c.row, nil
	}
	s := execution.New(id)
	for _, r := range w.log[:w.projected] {
		if r.event.Subject == id {
			s.Apply(r.event, r.at)
		}
	}
	if s.Version() == 0 {
		return execution.Row{}, fmt.Errorf("%w: %s", clickhouse.ErrNotFound, id)
	}
	row := s.Row()
	w.rows[id] = folded{w.projected, row}
	return row, nil
}

func (w *world) List(ctx context.Context, f clickhouse.Filter) ([]execution.Row, error) {
	w.mu.Lock()
	ids := map[string]bool{}
	for _, r := range w.log[:w.projected] {
		ids[r.event.Subject] = true
	}
	w.mu.Unlock()
	var out []execution.Row
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(ids))) {
		row, err := w.Row(ctx, id)
		if err != nil {
			return nil, err
		}
		made, _ := events.ParseExecutionID(id)
		match := (f.Status == "" || row.Status == f.Status) && (f.Before == "" || id < f.Before) && !made.Before(f.Since)
		for k, v := range f.Labels {
			match = match && row.Labels[k] == v
		}
		if match && len(out) < f.Limit {
			out = append(out, row)
		}
	}
	return out, nil
}

func (w *world) archived(id string) []record {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []record
	for i, r := range w.log[:w.recorded] {
		if r.event.Subject == id && !w.lost[i] {
			out = append(out, r)
		}
	}
	return out
}

func (w *world) Stories(ctx context.Context, ids []string) iter.Seq2[*clickhouse.Story, error] {
	return func(yield func(*clickhouse.Story, error) bool) {
		for _, id := range ids {
			story := &clickhouse.Story{ExecutionID: id}
			for e, err := range w.Events(ctx, id, -1) {
				if err != nil {
					yield(nil, err)
					return
				}
				if e.Event.Type != events.TypeOutputChunk {
					story.Facts = append(story.Facts, e)
				}
			}
			if len(story.Facts) > 0 && !yield(story, nil) {
				return
			}
		}
	}
}

func (w *world) Events(_ context.Context, id string, after int64) iter.Seq2[clickhouse.ArchivedEvent, error] {
	return func(yield func(clickhouse.ArchivedEvent, error) bool) {
		if w.databaseAway != nil {
			yield(clickhouse.ArchivedEvent{}, w.databaseAway)
			return
		}
		for _, r := range w.archived(id) {
			e := clickhouse.ArchivedEvent{Event: r.event, Topic: events.TopicExecutions, Partition: r.partition, Offset: r.offset, ReceivedAt: r.at}
			if r.offset > after && !yield(e, nil) {
				return
			}
		}
	}
}

func (w *world) Output(_ context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[clickhouse.Chunk, error] {
	return func(yield func(clickhouse.Chunk, error) bool) {
		if w.databaseAway != nil {
			yield(clickhouse.Chunk{}, w.databaseAway)
			return
		}
		if to == 0 {
			to = 1 << 62
		}
		at := from
		for _, r := range w.archived(id) {
			d, ok := r.event.Data.(*executionv1.OutputChunk)
			if !ok || r.event.Attempt != attempt || events.StreamName(d.GetStream()) != stream {
				continue
			}
			begin, end := max(d.GetOffset(), at), min(d.GetOffset()+uint64(len(d.GetData())), to)
			if begin >= end {
				continue
			}
			at = end
			c := clickhouse.Chunk{Attempt: attempt, Stream: stream, Offset: begin, Data: d.GetData()[begin-d.GetOffset() : end-d.GetOffset()]}
			if !yield(c, nil) {
				return
			}
		}
	}
}

func (w *world) EndOffset(_ context.Context, p int) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end(p), w.kafkaAway
}

func (w *world) OffsetAt(context.Context, int, time.Time) (int64, error) { return 0, nil }

func (w *world) Read(p int, from int64) (tail.Reader, error) {
	return &worldReader{w, p, from}, nil
}

type worldReader struct {
	w    *world
	p    int
	next int64
}

func (r *worldReader) Close() error { return nil }

func (r *worldReader) Next(ctx context.Context) (tail.Record, error) {
	for {
		r.w.mu.Lock()
		grown := r.w.grown
		if r.next < r.w.end(r.p) {
			k := r.w.byPlace[r.p][r.next]
			r.w.mu.Unlock()
			r.next++
			headers, value, err := codec.Encode(k.event)
			return tail.Record{Offset: k.offset, Key: []byte(k.event.Subject), Headers: headers, Value: value, Time: k.at}, err
		}
		r.w.mu.Unlock()
		select {
		case <-ctx.Done():
			return tail.Record{}, ctx.Err()
		case <-grown:
		}
	}
}

// server is a running gateway on the world.
type server struct {
	*gateway.Gateway
	*world
	url string
	// clickhouse answers /v1/query.
	clickhouse http.HandlerFunc
}

func start(t *testing.T, change ...func(*gateway.Config)) *server {
	t.Helper()
	return startWith(t, nil, change...)
}

// startWith also changes what the gateway stands on.
func startWith(t *testing.T, deps func(*gateway.Deps), change ...func(*gateway.Config)) *server {
	t.Helper()
	s := &server{world: newWorld(t)}
	database := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		answer := s.clickhouse
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(database.Close)
	s.clickhouse = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "1") }
	c := gateway.Config{
		Addr: "127.0.0.1:0", ClickHouseURL: strings.Replace(database.URL, "http://", "http://default:hidden@", 1) + "/verbatim",
		Logger: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	d := gateway.Deps{Rows: s, Archive: s, Publisher: s, Offsets: s, Log: s}
	if deps != nil {
		deps(&d)
	}
	s.Gateway, err = gateway.New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + s.Addr()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

// answer is a response whose body was read.
type answer struct {
	*http.Response
	body []byte
}

// answers sets what the database's HTTP interface does.
func (s *server) answers(h http.HandlerFunc) { s.change(func() { s.clickhouse = h }) }

func (s *server) do(method, path string, body any, header ...string) answer {
	s.t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	case io.Reader:
		reader = b
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		reader = bytes.NewReader(encoded)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v after %d bytes", method, path, err, len(got))
	}
	return answer{resp, got}
}

// problem checks that an answer is a problem of a status which speaks of all the words.
func (a answer) problem(t *testing.T, status int, says ...string) {
	t.Helper()
	var p api.Problem
	if a.StatusCode != status || a.Header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(a.body, &p) != nil || p.Status != status {
		t.Errorf("%s %s: status %d, %s: %.500s", a.Request.Method, a.Request.URL, a.StatusCode, a.Header.Get("Content-Type"), a.body)
		return
	}
	for _, word := range says {
		if !strings.Contains(string(a.body), word) {
			t.Errorf("%s %s: %.500s does not speak of %q", a.Request.Method, a.Request.URL, a.body, word)
		}
	}
}

// story makes the events of one execution.
type story struct {
	t        *testing.T
	id       string
	attempt  uint32
	sequence uint64
}

func newStory(t *testing.T) *story {
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	return &story{t: t, id: id, attempt: 1}
}

func (s *story) requested() events.Event {
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(s.id, 0, 1, time.Now(), &executionv1.ExecutionRequested{
		What:   &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"true"}}},
		Labels: map[string]string{"team": "x"},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *story) event(data proto.Message) events.Event {
	s.sequence++
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}.Event(s.id, s.attempt, s.sequence, time.Now(), data)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *story) started() events.Event {
	return s.event(&executionv1.ProcessStarted{Pid: 1, Host: "h", Runner: "r1"})
}

func (s *story) out(offset int, data string) events.Event {
	return s.event(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(offset), Data: []byte(data)})
}

func (s *story) exited(code int32) events.Event {
	return s.event(&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: code}})
}

// sealed closes stdout with n bytes of which the given ranges were elided.
func (s *story) sealed(n uint64, elided ...uint64) events.Event {
	seal := &executionv1.StreamSeal{Stream: executionv1.Stream_STREAM_STDOUT, CapturedBytes: n, PublishedBytes: n}
	for i := 0; i < len(elided); i += 2 {
		seal.Elided = append(seal.Elided, &executionv1.ByteRange{Start: elided[i], End: elided[i+1]})
		seal.PublishedBytes -= elided[i+1] - elided[i]
	}
	return s.event(&executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{seal, {Stream: executionv1.Stream_STREAM_STDERR}}})
}
