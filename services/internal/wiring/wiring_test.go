package wiring_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/deadletter"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
	embeddedkafka "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/preparer"
	"verbatim.dev/services/recorder/watchdog"
)

func TestMain(m *testing.M) {
	if lines := os.Getenv(clockVariable); lines != "" {
		writeClock(lines)
		return
	}
	os.Exit(clickhousetest.Main(m))
}

// rig is a log of facts with nobody at it, and a database.
type rig struct {
	t    *testing.T
	base wiring.Base
	dsn  string
	pub  *kafka.Publisher
}

func newRig(t *testing.T) *rig {
	t.Helper()
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, broker) })
	r := &rig{t: t, dsn: clickhousetest.Database(t)}
	r.base = wiring.Base{
		Kafka:  kafka.Config{Brokers: []string{broker.Addr()}},
		Logger: slog.New(slog.DiscardHandler), Registry: telemetry.NewRegistry(), Checks: &telemetry.Checks{},
	}
	if err := wiring.Setup(r.base, r.dsn, clickhouse.Retention{}, nil).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.pub, err = kafka.NewPublisher(r.base.Kafka, kafka.PublisherOptions{AllowNoKey: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.pub.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func stop(t *testing.T, s interface{ Stop(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func (r *rig) start(s lifecycle.Service) {
	r.t.Helper()
	if err := s.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { stop(r.t, s) })
}

func (r *rig) publish(ms ...*message.Message) {
	r.t.Helper()
	if err := r.pub.PublishContext(r.t.Context(), events.TopicExecutions, ms...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) message(subject string, attempt uint32, sequence uint64, data proto.Message) *message.Message {
	r.t.Helper()
	e, err := events.Producer{Name: "agent", Source: "/agent"}.Event(subject, attempt, sequence, time.Unix(1.8e9, 0), data)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// caughtUp waits until a group has handled everything that is in the log of facts.
func (r *rig) caughtUp(group string) {
	r.t.Helper()
	admin, err := kafka.NewAdmin(r.base.Kafka)
	if err != nil {
		r.t.Fatal(err)
	}
	defer admin.Close()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ends, err := admin.EndOffsets(r.t.Context(), events.TopicExecutions)
		if err != nil {
			r.t.Fatal(err)
		}
		committed, err := admin.CommittedOffsets(r.t.Context(), group, events.TopicExecutions)
		if err != nil {
			r.t.Fatal(err)
		}
		maps.DeleteFunc(ends, func(partition int, end int64) bool { return committed[partition] >= end })
		if len(ends) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s has not handled partitions %v", group, ends)
		}
		select {
		case <-time.After(20 * time.Millisecond): // Offsets send no signal.
		case <-r.t.Context().Done():
			r.t.Fatal(r.t.Context().Err())
		}
	}
}

func (r *rig) store() *clickhouse.Store {
	r.t.Helper()
	s, err := clickhouse.Open(r.t.Context(), r.dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return s
}

// One bad record among good ones costs itself and nothing else.
func TestBadFactsHoldNobodyUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := "01a21000-0000-7000-8000-00000000000a"
	garbage := message.NewMessage("x", []byte("garbage"))
	garbage.Metadata["ce_partitionkey"] = id
	r.publish(
		r.message(id, 1, 1, &executionv1.ProcessStarted{Pid: 1}),
		garbage,
		// An event, and no fact about an execution: there is no row and no place in the archive for it.
		r.message("runner-1", 0, 1, &executionv1.RunnerHeartbeat{Runner: "runner-1"}),
		r.message(id, 1, 2, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 3}}),
	)
	r.start(wiring.Recorder(r.base, r.dsn, watchdog.Config{}, wiring.Artifacts{}))
	r.start(wiring.Projector(r.base, r.dsn, 10))
	r.caughtUp("recorder")
	r.caughtUp("projector")

	row, err := r.store().Row(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if row.ExitCode == nil || *row.ExitCode != 3 || row.Version != 2 {
		t.Errorf("row %+v", row)
	}
	letters := 0
	for l, err := range deadletter.All(t.Context(), r.base.Kafka) {
		if err != nil {
			t.Fatal(err)
		}
		letters++
		if l.Group != "recorder" || l.Topic != events.TopicExecutions {
			t.Errorf("dead letter %+v", l)
		}
	}
	if letters != 2 {
		t.Errorf("%d dead letters, want one each of the two bad records", letters)
	}
}

// Facts of producers with another partitioner, or without keys, end up where they belong, each once and in order.
func TestFactsInTheWrongPartitionAreMoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(wiring.Recorder(r.base, r.dsn, watchdog.Config{}, wiring.Artifacts{}))
	r.start(wiring.Projector(r.base, r.dsn, 10))
	id := "01a21000-0000-7000-8000-00000000000b"
	right := kafka.PartitionFor([]byte(id), 12)
	const facts = 40
	for n := range facts {
		m := r.message(id, 1, uint64(n+1), &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(2 * n), Data: []byte("x\n")})
		var headers []kafka.Header
		for name, v := range m.Metadata {
			headers = append(headers, kafka.Header{Key: name, Value: []byte(v)})
		}
		// Another key gives another partition; no key gives any.
		key := []byte(fmt.Sprint("somewhere-", n))
		if n%2 == 0 {
			key = nil
		}
		m.SetContext(kafka.WithRecord(t.Context(), key, headers))
		r.publish(m)
	}
	r.caughtUp("recorder")
	r.caughtUp("recorder") // What it moved as well.
	r.caughtUp("projector")

	store := r.store()
	row, err := store.Row(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if row.Version != facts || row.StdoutBytes == nil || *row.StdoutBytes != 2*facts || len(row.Missing) != 0 {
		t.Errorf("row with %d facts, %v bytes, missing %v", row.Version, row.StdoutBytes, row.Missing)
	}
	seen := 0
	for e, err := range store.Events(t.Context(), id, -1) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		if e.Partition != right {
			t.Errorf("fact %s is archived from partition %d, not %d", e.Event.ID, e.Partition, right)
		}
	}
	if seen != facts {
		t.Errorf("%d facts are archived, want %d", seen, facts)
	}
}

// A service that cannot work says so within seconds and leaves nothing behind.
func TestAServiceThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	empty := clickhousetest.Database(t)
	if err := wiring.Recorder(r.base, empty, watchdog.Config{}, wiring.Artifacts{}).Start(t.Context()); err == nil {
		t.Error("a recorder started on a database without tables")
	}
	other := r.base
	other.Kafka.TopicPrefix = "other."
	if err := wiring.Preparer(other, preparer.Config{}).Start(t.Context()); err == nil {
		t.Error("a preparer started without topics")
	}
}
