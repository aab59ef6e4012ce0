package router_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	embedded "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/internal/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const topic = "things"

// stage is a router on a real broker, with its log and its dead letters.
type stage struct {
	t         *testing.T
	config    kafka.Config
	publisher *kafka.Publisher
	router    *message.Router
	registry  *prometheus.Registry
	log       lockedBuffer
	done      chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newStage(t *testing.T, deadLetters func(message.Publisher) message.Publisher, handle message.NoPublishHandlerFunc) *stage {
	t.Helper()
	return newStageWith(t, settings{drain: 2 * time.Second}, deadLetters, handle)
}

// settings are those of the topic of dead letters, and how long messages in flight may take when the subscriber ends.
type settings struct {
	letterTopic map[string]string
	drain       time.Duration
}

func newStageWith(t *testing.T, c settings, deadLetters func(message.Publisher) message.Publisher, handle message.NoPublishHandlerFunc) *stage {
	t.Helper()
	server, err := embedded.Start(t.Context(), embedded.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	s := &stage{t: t, config: kafka.Config{Brokers: []string{server.Addr()}}, registry: prometheus.NewRegistry(), done: make(chan error, 1)}
	if err := kafka.EnsureTopics(t.Context(), s.config, []kafka.Topic{{Name: topic, Partitions: 1}, {Name: events.TopicDeadletter, Partitions: 1, Config: c.letterTopic}}); err != nil {
		t.Fatal(err)
	}
	if s.publisher, err = kafka.NewPublisher(s.config, kafka.PublisherOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.publisher.Close() })
	letters := message.Publisher(s.publisher)
	if deadLetters != nil {
		letters = deadLetters(letters)
	}
	s.router, err = router.New(router.Config{
		Name: "worker", Logger: slog.New(slog.NewTextHandler(&s.log, nil)), Registry: s.registry, DeadLetters: letters,
		FirstPause: time.Millisecond, LongestPause: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := kafka.NewSubscriber(s.config, kafka.SubscriberOptions{Group: "worker", DrainTimeout: c.drain})
	if err != nil {
		t.Fatal(err)
	}
	s.router.AddConsumerHandler("worker", topic, sub, handle)
	go func() { s.done <- s.router.Run(context.Background()) }()
	t.Cleanup(s.stop)
	<-s.router.Running()
	return s
}

func (s *stage) stop() {
	if err := s.router.Close(); err != nil {
		s.t.Errorf("close: %v", err)
	}
}

func (s *stage) publish(uuid, payload string) {
	s.t.Helper()
	m := message.NewMessage(uuid, []byte(payload))
	m.Metadata["ce_partitionkey"] = "key"
	if err := s.publisher.Publish(topic, m); err != nil {
		s.t.Fatal(err)
	}
}

// letter returns the first dead letter.
func (s *stage) letter() kafka.Record {
	s.t.Helper()
	r, err := kafka.NewPartitionReader(s.config, events.TopicDeadletter, 0, kafka.First)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	record, err := r.Next(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return record
}

func (s *stage) letters() int64 {
	s.t.Helper()
	a, err := kafka.NewAdmin(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Close()
	end, err := a.EndOffsets(s.t.Context(), events.TopicDeadletter)
	if err != nil {
		s.t.Fatal(err)
	}
	return end[0]
}

// metric returns a counter's value for service worker.
func (s *stage) metric(name string) float64 {
	s.t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			total += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("did not happen")
	}
}

func header(r kafka.Record, name string) string {
	value := ""
	for _, h := range r.Headers {
		if h.Key == name {
			value = string(h.Value)
		}
	}
	return value
}

func TestPermanentIsDeadLetteredAndTheNextOneHandled(t *testing.T) {
	t.Parallel()
	handled := make(chan struct{})
	s := newStage(t, nil, func(m *message.Message) error {
		if m.UUID == "bad" {
			m.Payload = []byte("changed by the handler")
			return failure.Permanent(errors.New("cannot be read\nat all"))
		}
		close(handled)
		return nil
	})
	s.publish("bad", "as it came")
	s.publish("good", "")
	wait(t, handled)
	letter := s.letter()
	if string(letter.Value) != "as it came" || string(letter.Key) != "key" || header(letter, "ce_id") != "bad" {
		t.Errorf("dead letter is %q with key %q and id %q", letter.Value, letter.Key, header(letter, "ce_id"))
	}
	if got := header(letter, kafka.HeaderDeadLetterReason); got != "cannot be read at all" {
		t.Errorf("reason %q", got)
	}
	if header(letter, kafka.HeaderDeadLetterGroup) != "worker" || header(letter, kafka.HeaderDeadLetterTopic) != topic || header(letter, kafka.HeaderDeadLetterOffset) != "0" {
		t.Errorf("headers %v", letter.Headers)
	}
	if got := s.metric("verbatim_messages_dead_lettered_total"); got != 1 {
		t.Errorf("dead-lettered %v", got)
	}
}

func TestTransientIsTriedUntilItWorks(t *testing.T) {
	t.Parallel()
	handled := make(chan struct{})
	tries := 0
	s := newStage(t, nil, func(*message.Message) error {
		if tries++; tries < 8 {
			return errors.New("store is down")
		}
		close(handled)
		return nil
	})
	s.publish("a", "")
	wait(t, handled)
	s.stop()
	if n := s.letters(); n != 0 {
		t.Errorf("%d dead letters for a store that was down", n)
	}
	if failed, ok := s.metric("verbatim_messages_failed_total"), s.metric("verbatim_messages_handled_total"); failed != 7 || ok != 1 {
		t.Errorf("failed %v, handled %v", failed, ok)
	}
	if got := strings.Count(s.log.String(), "trying again"); got != 1 {
		t.Errorf("%d log lines for one trouble", got)
	}
}

func TestPanicIsDeadLetteredWithoutItsStack(t *testing.T) {
	t.Parallel()
	s := newStage(t, nil, func(*message.Message) error { panic("nobody expected this") })
	s.publish("a", "x")
	letter := s.letter()
	if got := header(letter, kafka.HeaderDeadLetterReason); got != "handler panicked: nobody expected this" {
		t.Errorf("reason %q", got)
	}
	s.stop()
	if log := s.log.String(); !strings.Contains(log, "router_test.go") {
		t.Error("no stack in the log")
	}
}

// failing refuses the first publications.
type failing struct {
	message.Publisher
	left atomic.Int32
}

func (f *failing) Publish(topic string, m ...*message.Message) error {
	if f.left.Add(-1) >= 0 {
		return errors.New("broker is away")
	}
	return f.Publisher.Publish(topic, m...)
}

func TestDeadLetterThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	tries := atomic.Int32{}
	s := newStage(t, func(p message.Publisher) message.Publisher {
		f := &failing{Publisher: p}
		f.left.Store(3)
		return f
	}, func(*message.Message) error {
		tries.Add(1)
		return failure.Permanent(errors.New("bad"))
	})
	s.publish("a", "x")
	if letter := s.letter(); string(letter.Value) != "x" {
		t.Errorf("dead letter %q", letter.Value)
	}
	if tries.Load() != 1 {
		t.Errorf("handler ran %d times for one dead letter", tries.Load())
	}
}

// A dead letter that the broker finds too large says all but the value, and how much that was.
func TestALargeDeadLetterIsWrittenWithoutItsValue(t *testing.T) {
	t.Parallel()
	handled := make(chan struct{})
	s := newStageWith(t, settings{map[string]string{"max.message.bytes": "5000"}, 2 * time.Second}, nil, func(m *message.Message) error {
		if m.UUID == "good" {
			close(handled)
			return nil
		}
		return failure.Permanent(errors.New("bad"))
	})
	large := make([]byte, 10_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(large) // It does not compress.
	s.publish("large", string(large))
	s.publish("good", "")
	wait(t, handled)
	letter := s.letter()
	if letter.Value != nil || string(letter.Key) != "key" || header(letter, "ce_id") != "large" || header(letter, kafka.HeaderDeadLetterReason) != "bad" {
		t.Errorf("dead letter of %d bytes with headers %v", len(letter.Value), letter.Headers)
	}
	if got := header(letter, kafka.HeaderDeadLetterLeftOut); got != "10000" {
		t.Errorf("left out are %q bytes", got)
	}
}

func TestStoppingGivesTheMessageBack(t *testing.T) {
	t.Parallel()
	failed := make(chan struct{})
	var once sync.Once
	s := newStage(t, nil, func(*message.Message) error {
		once.Do(func() { close(failed) })
		return errors.New("store is down")
	})
	s.publish("a", "x")
	wait(t, failed)
	began := time.Now()
	s.stop()
	if d := time.Since(began); d > 8*time.Second { // Close waits 10 s.
		t.Errorf("stopping took %s, the retry does not end", d)
	}
	if n := s.letters(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	sub, err := kafka.NewSubscriber(s.config, kafka.SubscriberOptions{Group: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	messages, err := sub.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-messages:
		m.Ack()
		if m.UUID != "a" {
			t.Errorf("got %s", m.UUID)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("message is lost")
	}
}

func TestStoppingLetsAHandlerFinish(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	var cancelled atomic.Bool
	s := newStageWith(t, settings{drain: 8 * time.Second}, nil, func(m *message.Message) error {
		close(entered)
		<-leave
		cancelled.Store(m.Context().Err() != nil)
		return nil
	})
	s.publish("a", "x")
	wait(t, entered)
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("stopped although a handler runs")
	case <-time.After(100 * time.Millisecond):
	}
	close(leave)
	wait(t, stopped)
	if cancelled.Load() {
		t.Error("the handler's context ended while it had time to finish")
	}
	a, err := kafka.NewAdmin(s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got, err := a.CommittedOffsets(t.Context(), "worker", topic); err != nil || got[0] != 1 {
		t.Errorf("committed %v, %v", got, err)
	}
}

func TestClaimedMessageIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	tries := atomic.Int32{}
	s := newStage(t, nil, func(m *message.Message) error {
		tries.Add(1)
		if err := kafka.CommitSync(m.Context(), m); err != nil {
			return err
		}
		return errors.New("started and then lost the database")
	})
	s.publish("a", "x")
	if letter := s.letter(); header(letter, "ce_id") != "a" {
		t.Errorf("dead letter %v", letter.Headers)
	}
	if tries.Load() != 1 {
		t.Errorf("handler ran %d times", tries.Load())
	}
}

func TestRoutersShareARegistry(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	for _, name := range []string{"a", "b", "a"} {
		if _, err := router.New(router.Config{Name: name, Registry: registry, DeadLetters: &failing{}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := router.New(router.Config{}); err == nil || !strings.Contains(err.Error(), "name") || !strings.Contains(err.Error(), "dead letters") {
		t.Errorf("an empty configuration gives %v", err)
	}
}
