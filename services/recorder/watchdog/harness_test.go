package watchdog

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	embedded "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/claim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock goes on when the test says so. It starts at the real time, since the broker's records have that.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// After is not used: the tests call pass.
func (c *clock) After(time.Duration) <-chan time.Time { return nil }

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// archive keeps facts in memory.
type archive struct {
	mu    sync.Mutex
	facts map[string][]clickhouse.ArchivedEvent
	rows  []clickhouse.OpenExecution
	away  error
	// frozen, if not nil, is what is read meanwhile.
	frozen map[string][]clickhouse.ArchivedEvent
}

// freeze lets readers see what is there now, until the function that it returns is called.
func (a *archive) freeze() (thaw func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.frozen = map[string][]clickhouse.ArchivedEvent{}
	for id, facts := range a.facts {
		a.frozen[id] = slices.Clone(facts)
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.frozen = nil
	}
}

// read is what a reader sees.
func (a *archive) read(id string) []clickhouse.ArchivedEvent {
	a.mu.Lock()
	frozen := a.frozen
	a.mu.Unlock()
	if frozen != nil {
		return frozen[id]
	}
	return a.of(id)
}

func (a *archive) add(f clickhouse.ArchivedEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.facts == nil {
		a.facts = map[string][]clickhouse.ArchivedEvent{}
	}
	a.facts[f.Event.Subject] = append(a.facts[f.Event.Subject], f)
}

func (a *archive) of(id string) []clickhouse.ArchivedEvent {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.facts[id])
}

func storyOf(id string, facts []clickhouse.ArchivedEvent) *clickhouse.Story {
	s := &clickhouse.Story{ExecutionID: id, Last: map[uint32]map[string]uint64{}}
	for _, f := range facts {
		e := f.Event
		if s.Last[e.Attempt] == nil {
			s.Last[e.Attempt] = map[string]uint64{}
		}
		s.Last[e.Attempt][e.Source] = max(s.Last[e.Attempt][e.Source], e.Sequence)
		if e.Type != events.TypeOutputChunk {
			s.Facts = append(s.Facts, f)
		}
	}
	return s
}

func (a *archive) Stories(_ context.Context, ids []string) iter.Seq2[*clickhouse.Story, error] {
	return func(yield func(*clickhouse.Story, error) bool) {
		for _, id := range ids {
			if a.away != nil {
				yield(nil, a.away)
				return
			}
			if facts := a.read(id); len(facts) > 0 && !yield(storyOf(id, facts), nil) {
				return
			}
		}
	}
}

func (a *archive) OpenExecutions(_ context.Context, since time.Time) iter.Seq2[clickhouse.OpenExecution, error] {
	return a.open(func(id string) bool { return id >= events.FirstExecutionID(since) })
}

func (a *archive) LongOpenExecutions(_ context.Context, before time.Time) iter.Seq2[clickhouse.OpenExecution, error] {
	return a.open(func(id string) bool { return id < events.FirstExecutionID(before) })
}

func (a *archive) open(wanted func(id string) bool) iter.Seq2[clickhouse.OpenExecution, error] {
	return func(yield func(clickhouse.OpenExecution, error) bool) {
		for _, r := range a.rows {
			if wanted(r.ExecutionID) && !yield(r, nil) {
				return
			}
		}
	}
}

// theatre is a broker, an archive, and watchdogs that belong to recorders.
type theatre struct {
	*testing.T
	kafka     kafka.Config
	broker    *embedded.Server
	dir       string
	publisher *kafka.Publisher
	admin     *kafka.Admin
	clock     *clock
	archive   *archive
	next      map[string]uint64
}

func open(t *testing.T) *theatre {
	t.Helper()
	s := &theatre{T: t, clock: newClock(), archive: &archive{}, dir: t.TempDir(), next: map[string]uint64{}}
	s.start("127.0.0.1:0")
	t.Cleanup(func() { s.must(s.broker.Stop(context.Background())) })
	s.kafka = kafka.Config{Brokers: []string{s.broker.Addr()}, ClientID: "test"}
	var topics []kafka.Topic
	for _, topic := range events.Topics() {
		topics = append(topics, kafka.Topic(topic))
	}
	s.must(kafka.EnsureTopics(t.Context(), s.kafka, topics))
	var err error
	s.publisher, err = kafka.NewPublisher(s.kafka, kafka.PublisherOptions{})
	s.must(err)
	s.admin, err = kafka.NewAdmin(s.kafka)
	s.must(err)
	t.Cleanup(func() { s.must(s.publisher.Close()); s.must(s.admin.Close()) })
	return s
}

func (s *theatre) start(addr string) {
	s.Helper()
	var err error
	s.broker, err = embedded.Start(context.Background(), embedded.Config{Addr: addr, DataDir: s.dir, Logger: slog.New(slog.DiscardHandler)})
	s.must(err)
}

func (s *theatre) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// watch starts a watchdog and a recorder that archives for it, when archiving.
func (s *theatre) watch(archiving bool, change ...func(*Config)) *Watchdog {
	s.Helper()
	c := Config{
		Kafka: s.kafka, Partitions: 12, MissedHeartbeats: 2, PrepareWithin: 10 * time.Second, SealWithin: 20 * time.Second, Margin: time.Second,
		Clock: s.clock, Registry: prometheus.NewRegistry(),
	}
	for _, f := range change {
		f(&c)
	}
	w, err := New(c, s.archive, s.archive, s.publisher)
	s.must(err)
	w.anew()
	ctx, cancel := context.WithCancel(context.Background())
	w.running.Go(func() { w.listen(ctx) })
	w.stop = cancel
	s.Cleanup(func() { s.must(w.Stop()) })
	if archiving {
		s.record(w)
	}
	return w
}

// record archives facts as a recorder does, and tells the watchdog. They are received by the test's clock: however slow the machine is.
func (s *theatre) record(w *Watchdog) {
	s.Helper()
	owned := make(chan struct{}, 100)
	sub, err := kafka.NewSubscriber(s.kafka, kafka.SubscriberOptions{
		Group: "recorder", MaxInFlight: 100, CommitInterval: 10 * time.Millisecond,
		OnOwned: func(ctx context.Context, _ string, partition int) { w.Owned(ctx, partition); owned <- struct{}{} },
	})
	s.must(err)
	in, err := sub.Subscribe(context.Background(), events.TopicExecutions)
	s.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range in {
			at, _ := kafka.PositionFromContext(m.Context())
			if e, err := codec.FromMessage(m); err == nil {
				f := clickhouse.ArchivedEvent{Event: e, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, ReceivedAt: s.clock.Now()}
				s.archive.add(f)
				w.Observe([]clickhouse.ArchivedEvent{f})
			}
			m.Ack()
		}
	}()
	s.Cleanup(func() { s.must(sub.Close()); <-done })
	for range w.c.Partitions {
		<-owned
	}
}

func (s *theatre) say(topic, name, source, id string, attempt uint32, data proto.Message) {
	s.Helper()
	key := id + source + string(rune(attempt)) + topic
	s.next[key]++
	e, err := events.Producer{Name: name, Source: source}.Event(id, attempt, s.next[key], time.Now(), data)
	s.must(err)
	m, err := codec.ToMessage(e)
	s.must(err)
	s.must(s.publisher.PublishContext(s.Context(), topic, m))
}

func (s *theatre) request(id string, retry *executionv1.RetryPolicy) {
	s.Helper()
	s.say(events.TopicExecutions, "gateway", "/verbatim/gateway", id, 0, command(retry))
}

func command(retry *executionv1.RetryPolicy) *executionv1.ExecutionRequested {
	return &executionv1.ExecutionRequested{What: &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"x"}}}, Retry: retry}
}

func (s *theatre) prepare(id string, attempt uint32) {
	s.Helper()
	s.say(events.TopicExecutions, "preparer", "/verbatim/preparer", id, attempt, &executionv1.Prepared{
		Argv: []string{"x"}, StartBy: timestamppb.New(s.clock.Now().Add(30 * time.Second)),
	})
}

// requestLarge writes a request that only another producer's limit admits.
func (s *theatre) requestLarge(id string) {
	s.Helper()
	c := command(nil)
	c.Stdin = make([]byte, kafka.DefaultMaxMessageBytes)
	e, err := events.Producer{Name: "ci", Source: "/ci"}.Event(id, 0, 1, time.Now(), c)
	s.must(err)
	m, err := codec.ToMessage(e)
	s.must(err)
	p, err := kafka.NewPublisher(s.kafka, kafka.PublisherOptions{MaxMessageBytes: 2 * kafka.DefaultMaxMessageBytes})
	s.must(err)
	s.must(p.PublishContext(s.Context(), events.TopicRequests, m))
	s.must(p.Close())
}

// forgetRequests lets the broker remove requests up to these offsets, as it does when they are old.
func (s *theatre) forgetRequests(ends map[int]int64) {
	s.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.broker.Addr()))
	s.must(err)
	defer client.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 5000
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = events.TopicRequests
	for partition, end := range ends {
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = int32(partition), end
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(s.Context(), client)
	s.must(err)
	for _, p := range res.Topics[0].Partitions {
		s.must(kerr.ErrorForCode(p.ErrorCode))
	}
}

// runner says facts of an attempt as the runner r1.
func (s *theatre) runner(id string, attempt uint32, data ...proto.Message) {
	s.Helper()
	for _, d := range data {
		s.say(events.TopicExecutions, "runner", "/verbatim/runner/r1", id, attempt, d)
	}
}

// beat sends a heartbeat of r1 that has the executions' first attempts.
func (s *theatre) beat(ids ...string) {
	s.Helper()
	b := &executionv1.RunnerHeartbeat{Runner: "r1"}
	for _, id := range ids {
		b.Running = append(b.Running, &executionv1.RunningAttempt{Execution: id, Attempt: 1})
	}
	s.say(events.TopicRunners, "runner", "/verbatim/runner/r1", "r1", 0, b)
}

// claim commits as a runner does that takes these, until nothing else is left before the next one in the queue.
func (s *theatre) claim(runner string, ids ...string) {
	s.Helper()
	s.take(events.TopicWork, kafka.SubscriberOptions{Group: "runner", MaxInFlight: 1, CommitMetadata: func(before kafka.Commit) string { return claim.Sign(before, runner) }}, ids...)
}

func (s *theatre) take(topic string, o kafka.SubscriberOptions, ids ...string) {
	s.Helper()
	sub, err := kafka.NewSubscriber(s.kafka, o)
	s.must(err)
	defer func() { s.must(sub.Close()) }()
	in, err := sub.Subscribe(s.Context(), topic)
	s.must(err)
	for left := len(ids); left > 0; {
		m := <-in
		e, err := codec.FromMessage(m)
		s.must(err)
		if slices.Contains(ids, e.Subject) {
			s.must(kafka.CommitSync(s.Context(), m))
			left--
			m.Ack()
		}
	}
}

// pass lets the watchdog look, after it heard of everything that is there. The mark that the pass before made is reached.
func (s *theatre) pass(w *Watchdog) error {
	s.Helper()
	s.until("everything is heard", func() bool {
		beats, noBeats := s.admin.EndOffsets(s.Context(), events.TopicRunners)
		ends, noEnds := s.admin.EndOffsets(s.Context(), events.TopicExecutions)
		done, noCommits := s.admin.CommittedOffsets(s.Context(), "recorder", events.TopicExecutions)
		if errors.Join(noBeats, noEnds, noCommits) != nil {
			return false // It was restarted.
		}
		for p, end := range ends {
			if end > done[p] {
				return false
			}
		}
		return w.beatsRead.Load() >= beats[0]
	})
	return w.pass(s.Context())
}

// passes looks twice: once to make marks, and once with what was there then.
func (s *theatre) passes(w *Watchdog) {
	s.Helper()
	s.must(s.pass(w))
	s.must(s.pass(w))
}

// later lets time go by in steps in which the watchdog looks, so that it does not take itself for having stood still.
func (s *theatre) later(w *Watchdog, d time.Duration, during ...func()) {
	s.Helper()
	for ; d > 0; d -= time.Second {
		s.clock.add(min(d, time.Second))
		for _, f := range during {
			f()
		}
		s.must(s.pass(w))
	}
	s.must(s.pass(w))
}

func (s *theatre) until(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			s.Fatal("waited in vain until " + what)
		}
		time.Sleep(2 * time.Millisecond) // The pace of asking the broker, which sends no signal.
	}
}

// said lists what the watchdog said about an execution, each id once, in order.
func (s *theatre) said(id string) []proto.Message {
	s.Helper()
	byID := map[string]proto.Message{}
	for _, f := range s.archive.of(id) {
		if f.Event.Source == producer.Source {
			byID[f.Event.ID] = f.Event.Data
		}
	}
	var out []proto.Message
	for _, key := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, byID[key])
	}
	return out
}

func (s *theatre) wantSaid(w *Watchdog, id string, want ...string) []proto.Message {
	s.Helper()
	s.passes(w)
	got := s.said(id)
	var names []string
	for _, m := range got {
		names = append(names, string(m.ProtoReflect().Descriptor().Name()))
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		s.Fatalf("the watchdog said %v, want %v", names, want)
	}
	return got
}

func newID(t testing.TB) string {
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
