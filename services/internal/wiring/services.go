package wiring

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/preparer"
	"verbatim.dev/services/projector"
	"verbatim.dev/services/recorder"
	"verbatim.dev/services/recorder/watchdog"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/outbox"
)

// In-flight messages per partition. Sinks gather them into batches; in the recorder each waits in a goroutine of its own, and
// the fetched bytes bound their memory.
const (
	sinkInFlight   = 4096
	sinkFetchBytes = 4 << 20
	// projectorInFlight has room for more than the projector's three batches, so that the next one is made ready while they are
	// worked on. What it gathers is bounded in bytes by its batches.
	projectorInFlight = 8192
	// sinkInFlightBytes is for each partition: a recorder whose store is slow holds no more.
	sinkInFlightBytes = 8 << 20
)

// Preparer returns the preparer.
func Preparer(b Base, c preparer.Config) lifecycle.Service {
	n := &node{Base: b, name: "preparer"}
	n.open = func(_ context.Context, p *kafka.Publisher) ([]consumer, error) {
		received := func(m *message.Message) time.Time {
			at, _ := kafka.PositionFromContext(m.Context())
			return at.Time
		}
		return []consumer{{
			topic: events.TopicRequests, inFlight: 64, fetchBytes: sinkFetchBytes,
			handle: preparer.New(c, p, received, b.Logger).Handle,
		}}, nil
	}
	return n
}

// Recorder returns the recorder; without artifacts when files is its zero value. It also looks after the topics that nobody else decodes as a group, so that
// what is no event there is dead-lettered once.
func Recorder(b Base, dsn string, c watchdog.Config, files Artifacts) lifecycle.Service {
	n := &node{Base: b, name: "recorder"}
	n.open = func(ctx context.Context, p *kafka.Publisher) ([]consumer, error) {
		store, err := openStore(ctx, b, dsn)
		if err != nil {
			return nil, err
		}
		n.close = store.Close
		r, err := recorder.New(store, p, partitions(), b.Logger, b.Registry)
		if err != nil {
			return nil, err
		}
		n.release = r.Stop
		c.Kafka, c.Partitions, c.HeartbeatInterval, c.Logger, c.Registry = b.Kafka, partitions(), runner.HeartbeatInterval, b.Logger, b.Registry
		dog, err := watchdog.New(c, store, store, p)
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		r.Watched(dog)
		dog.Start(ctx)
		n.close = func() error { return errors.Join(dog.Stop(), store.Close()) }
		artifacts, err := openArtifacts(ctx, n, files, store, p)
		if err != nil {
			return nil, err
		}
		return append(artifacts, []consumer{
			{topic: events.TopicExecutions, inFlight: sinkInFlight, inFlightBytes: sinkInFlightBytes, fetchBytes: sinkFetchBytes / 2, owned: dog.Owned, handle: r.Handle},
			{topic: events.TopicControl, inFlight: 64, handle: r.HandleControl},
			{topic: events.TopicRunners, inFlight: 64, handle: decodes},
		}...), nil
	}
	return n
}

// partitions is how many partitions the log of facts has.
func partitions() int { return Topics(events.TopicExecutions)[0].Partitions }

// decodes accepts what is an event.
func decodes(m *message.Message) error {
	_, err := codec.FromMessage(m)
	return failure.Permanent(err)
}

// Projector returns the projector.
func Projector(b Base, dsn string, keep int) lifecycle.Service {
	n := &node{Base: b, name: "projector"}
	n.open = func(ctx context.Context, _ *kafka.Publisher) ([]consumer, error) {
		store, err := openStore(ctx, b, dsn)
		if err != nil {
			return nil, err
		}
		n.close = store.Close
		p, err := projector.New(store, store, partitions(), keep, b.Logger, b.Registry)
		if err != nil {
			return nil, err
		}
		n.release = p.Stop
		return []consumer{{topic: events.TopicExecutions, inFlight: projectorInFlight, fetchBytes: sinkFetchBytes, take: p.Take}}, nil
	}
	return n
}

// openStore opens the database and checks that its tables are those this program knows.
func openStore(ctx context.Context, b Base, dsn string) (*clickhouse.Store, error) {
	store, err := clickhouse.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if err := store.CheckSchema(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w (\"verbatim setup\" makes the tables)", err), store.Close())
	}
	b.Checks.Add("clickhouse", store.Ping)
	return store, nil
}

// Runner returns the runner and its supervisor in this process: what runs ends with it.
func Runner(b Base, c runner.Config) lifecycle.Service { return runnerNode(b, c) }

// runnerNode returns the runner.
func runnerNode(b Base, c runner.Config) *node {
	n := &node{Base: b, name: "runner"}
	// Each attempt gathers while its last call is under way (package outbox). Lingering would only be added to every one.
	n.publishing = kafka.PublisherOptions{Linger: -1, BatchBytes: outbox.BatchBytes}
	c.Committed, c.Upload, c.OthersFree = committed(b, c.ID), upload(b), othersFree(b, c.ID)
	var r *runner.Runner
	adopted := 0
	n.adopt = func(ctx context.Context, p *kafka.Publisher) (_ bool, err error) {
		if r, err = openRunner(ctx, b, c, p); err != nil {
			return false, err
		}
		n.drain = r.Stop
		adopted, err = r.Adopt(ctx)
		return adopted > 0, err
	}
	n.open = func(ctx context.Context, _ *kafka.Publisher) ([]consumer, error) {
		control, err := goOn(ctx, b, c, r, adopted > 0)
		if err != nil {
			if adopted == 0 {
				n.drain = nil // What was found since is not ended for it: the next worker goes on.
			}
			return nil, err
		}
		r.Beat()
		n.drain = func(ctx context.Context) error {
			err := r.Stop(ctx)
			return errors.Join(err, control.stop())
		}
		return []consumer{{topic: events.TopicWork, inFlight: 1, fetchBytes: sinkFetchBytes, signature: signature(c.ID), joined: rememberMember(b, c.DataDir), paused: r.Paused, handle: r.Handle}}, nil
	}
	return n
}
