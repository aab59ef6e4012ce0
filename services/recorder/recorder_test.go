package recorder_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	embedded "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/router"
	"verbatim.dev/services/recorder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// archive has the ids of what was archived.
type archive struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (a *archive) InsertEvents(_ context.Context, es []clickhouse.ArchivedEvent) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range es {
		a.ids[e.Event.ID] = true
	}
	return nil
}

func (a *archive) has(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ids[id]
}

func (a *archive) EraseEvents(context.Context, []string) error { return nil }

func (a *archive) Deleted(context.Context) ([]string, error) { return nil, nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fact that compresses well is small for the broker and too large for a client. Where it does not belong, it can be moved no more than
// archived: it is a dead letter, and what lies behind it goes on.
func TestALargeFactInTheWrongPartition(t *testing.T) {
	t.Parallel()
	server, err := embedded.Start(t.Context(), embedded.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir()})
	must(t, err)
	t.Cleanup(func() { must(t, server.Stop(context.Background())) })
	config := kafka.Config{Brokers: []string{server.Addr()}}
	var topics []kafka.Topic
	for _, topic := range events.Topics() {
		topics = append(topics, kafka.Topic(topic))
	}
	must(t, kafka.EnsureTopics(t.Context(), config, topics))
	p, err := kafka.NewPublisher(config, kafka.PublisherOptions{MaxMessageBytes: events.MaxRecordBytes})
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })

	logger, registry, archived := slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &archive{ids: map[string]bool{}}
	r, err := recorder.New(archived, p, 12, logger, registry)
	must(t, err)
	t.Cleanup(r.Stop)
	frame, err := router.New(router.Config{Name: "recorder", Logger: logger, Registry: registry, DeadLetters: p})
	must(t, err)
	sub, err := kafka.NewSubscriber(config, kafka.SubscriberOptions{Group: "recorder", MaxInFlight: 100})
	must(t, err)
	frame.AddConsumerHandler("facts", events.TopicExecutions, sub, r.Handle)
	go func() { _ = frame.Run(context.Background()) }()
	t.Cleanup(func() { must(t, frame.Close()) })
	<-frame.Running()

	id, err := events.NewExecutionID()
	must(t, err)
	key := "x" // Of another partition.
	for kafka.PartitionFor([]byte(key), 12) == kafka.PartitionFor([]byte(id), 12) {
		key += "x"
	}
	say := func(number uint64, text string) string {
		e, err := events.Producer{Name: "ci", Source: "/ci"}.Event(id, 1, number, time.Now(), &executionv1.ProcessStarted{Runner: text})
		must(t, err)
		m, err := codec.ToMessage(e)
		must(t, err)
		var headers []kafka.Header
		for name, value := range m.Metadata {
			headers = append(headers, kafka.Header{Key: name, Value: []byte(value)})
		}
		m.SetContext(kafka.WithRecord(t.Context(), []byte(key), headers))
		must(t, p.PublishContext(t.Context(), events.TopicExecutions, m))
		return e.ID
	}
	say(1, strings.Repeat("x", 11<<20))
	next := say(2, "small")
	letters, err := kafka.NewAdmin(config)
	must(t, err)
	defer letters.Close()
	dead := func() (n int64) {
		ends, err := letters.EndOffsets(t.Context(), events.TopicDeadletter)
		must(t, err)
		for _, end := range ends {
			n += end
		}
		return n
	}
	for deadline := time.Now().Add(15 * time.Second); dead() != 1 || !archived.has(next); time.Sleep(10 * time.Millisecond) { // The pace of asking the broker, which sends no signal.
		if time.Now().After(deadline) {
			t.Fatalf("%d dead letters, the next is archived: %t", dead(), archived.has(next))
		}
	}
}
