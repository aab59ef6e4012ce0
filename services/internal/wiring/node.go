// Package wiring puts the services together: each from its configuration alone, so that "verbatim up" and
// a service started by itself are the same code.
package wiring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/retry"
	"verbatim.dev/services/internal/router"
	"verbatim.dev/services/internal/telemetry"
)

// Base is what every service gets.
type Base struct {
	Kafka    kafka.Config
	Logger   *slog.Logger
	Registry *prometheus.Registry
	// Checks gets the service's readiness checks.
	Checks *telemetry.Checks
}

// handlerDrain is how long a stopping service lets its handlers finish before it ends them.
const handlerDrain = 5 * time.Second

// node is a service that consumes topics: a publisher, and a router with one handler per topic.
type node struct {
	Base
	name string
	// adopt, if not nil, goes on with what needs no broker, and says whether there was something. Then the broker is waited for in the
	// background, and the service stands meanwhile.
	adopt func(ctx context.Context, p *kafka.Publisher) (bool, error)
	// open builds the consumers when the publisher stands.
	open func(ctx context.Context, p *kafka.Publisher) ([]consumer, error)
	// publishing tunes the publisher.
	publishing kafka.PublisherOptions
	// release, if not nil, makes handlers that wait for something give up. It is called when they had
	// handlerDrain to finish.
	release func()
	// drain, if not nil, ends what handlers left running, after the last of them has returned.
	drain func(ctx context.Context) error
	// close, if not nil, closes what open opened, last.
	close func() error

	publisher   *kafka.Publisher
	subscribers []message.Subscriber
	sources     []message.Subscriber // of sinks
	sinks       sync.WaitGroup
	router      *message.Router
	failed      chan error
	done        chan struct{}
	joined      chan struct{} // Closed when the service takes messages.
	starting    sync.WaitGroup
	stopStart   context.CancelFunc // nil unless the rest of the start is in the background.
}

// consumer is one handler on one topic.
type consumer struct {
	topic string
	// group is the consumer group's name; empty: the service's.
	group string
	// inFlight bounds the unacknowledged messages of a partition, fetchBytes the bytes fetched for it.
	inFlight int
	// inFlightBytes bounds what unacknowledged messages of a partition hold in memory; 0: only their number is bounded.
	inFlightBytes int
	fetchBytes    int
	// slow says that messages may be in flight for long.
	slow bool
	// signature, if not nil, gives what is stored beside the offsets committed, see kafka.SubscriberOptions.CommitMetadata.
	signature func(before kafka.Commit) string
	// owned, if not nil, is told of the partitions that are this member's, see kafka.SubscriberOptions.OnOwned.
	owned func(owned context.Context, partition int)
	// joined, if not nil, is told each time under which name the group knows this member.
	joined func(member string)
	// paused, if not nil, says when the topic is to be left to others, see intake.
	paused func() (bool, <-chan struct{})
	handle message.NoPublishHandlerFunc
	// take, instead of handle, takes the messages until the channel is closed, and settles them (package sink).
	take func(<-chan *message.Message)
}

// Topics are the topics as the transport takes them.
func Topics(names ...string) []kafka.Topic {
	var out []kafka.Topic
	for _, t := range events.Topics() {
		for _, name := range names {
			if t.Name == name {
				out = append(out, kafka.Topic(t))
			}
		}
		if len(names) == 0 {
			out = append(out, kafka.Topic(t))
		}
	}
	return out
}

// Start implements lifecycle.Service.
func (n *node) Start(ctx context.Context) error {
	n.failed, n.joined = make(chan error, 1), make(chan struct{})
	var err error
	if n.publisher, err = newPublisher(n.Kafka, n.publishing); err != nil {
		return err
	}
	if n.adopt != nil {
		busy, err := n.adopt(ctx, n.publisher)
		if err != nil {
			return errors.Join(err, n.end(ctx))
		}
		if busy {
			n.startLater(ctx)
			return nil
		}
	}
	if err := kafka.CheckTopics(ctx, n.Kafka, Topics()); err != nil {
		return errors.Join(err, n.end(ctx))
	}
	if err := n.start(ctx); err != nil {
		return errors.Join(err, n.end(ctx))
	}
	n.Checks.Add(n.name, n.ready)
	return nil
}

// startLater does the rest of the start when the broker answers. It ends with Stop.
func (n *node) startLater(ctx context.Context) {
	n.Checks.Add(n.name, n.ready)
	ctx, n.stopStart = context.WithCancel(context.WithoutCancel(ctx))
	n.starting.Go(func() {
		err := retry.Until(ctx, n.Logger, "wait for the broker", func() error { return kafka.CheckTopics(ctx, n.Kafka, Topics()) })
		if err == nil {
			err = n.start(ctx)
		}
		if err != nil && ctx.Err() == nil {
			n.failed <- err
		}
	})
}

func (n *node) start(ctx context.Context) error {
	consumers, err := n.open(ctx, n.publisher)
	if err != nil {
		return err
	}
	n.router, err = router.New(router.Config{
		Name: n.name, Logger: n.Logger, Registry: n.Registry, DeadLetters: n.publisher, CloseTimeout: 2 * handlerDrain,
	})
	if err != nil {
		return err
	}
	for _, c := range consumers {
		s, err := n.subscriber(ctx, c)
		if err != nil {
			return err
		}
		if c.take != nil {
			n.sources = append(n.sources, s)
			// The subscription lives until Stop, not until the start is over.
			messages, err := s.Subscribe(context.WithoutCancel(ctx), c.topic)
			if err != nil {
				return err
			}
			n.sinks.Go(func() { c.take(messages) })
			continue
		}
		n.subscribers = append(n.subscribers, s)
		n.router.AddConsumerHandler(cmp.Or(c.group, n.name)+"."+c.topic, c.topic, s, c.handle)
	}
	n.done = make(chan struct{})
	go func() {
		defer close(n.done)
		// The router lives until Stop, not until the start is over.
		if err := n.router.Run(context.WithoutCancel(ctx)); err != nil {
			n.failed <- err
		}
	}()
	select {
	case <-n.router.Running():
		close(n.joined)
		return nil
	case <-n.done:
		return errors.Join(errors.New("router ended at once"), <-n.failed)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) subscriber(ctx context.Context, c consumer) (message.Subscriber, error) {
	owned := func(owned context.Context, _ string, partition int) {
		if c.owned != nil {
			c.owned(owned, partition)
		}
	}
	joined := func(_, member string) {
		if c.joined != nil {
			c.joined(member)
		}
	}
	open := func() (*kafka.Subscriber, error) {
		return kafka.NewSubscriber(n.Kafka, kafka.SubscriberOptions{
			Group: cmp.Or(c.group, n.name), MaxInFlight: c.inFlight, MaxInFlightBytes: c.inFlightBytes, FetchBytes: c.fetchBytes, CommitMetadata: c.signature, OwnRecords: c.slow, OnOwned: owned, OnJoined: joined,
			OnAlarm: func(topic string, partition int, err error) {
				n.Logger.ErrorContext(ctx, "partition stands still", "topic", topic, "partition", partition, "error", err)
			},
		})
	}
	if c.paused != nil {
		return newIntake(n.Logger, open, c.paused), nil
	}
	return open()
}

func (n *node) ready(context.Context) error {
	select {
	case <-n.joined:
	default:
		return errors.New("waits for the broker")
	}
	if n.router.IsClosed() {
		return errors.New("stopped")
	}
	return nil
}

// Failed implements lifecycle.Failing.
func (n *node) Failed() <-chan error { return n.failed }

// Stop implements lifecycle.Service: no new messages, handlers finish, what they left running ends, and
// what they published is flushed.
func (n *node) Stop(ctx context.Context) error {
	if n.stopStart != nil {
		n.stopStart()
		n.starting.Wait()
	}
	if n.release != nil {
		timer := time.AfterFunc(handlerDrain, func() { n.release() })
		defer timer.Stop()
	}
	return n.end(ctx)
}

// end ends whatever was begun, also by a start that failed.
func (n *node) end(ctx context.Context) error {
	var errs []error
	if n.router != nil {
		if err := n.router.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close router: %w", err))
		}
	}
	for _, s := range n.sources {
		errs = append(errs, s.Close()) // It waits until what is in flight is stored, as long as it may.
	}
	if n.release != nil {
		n.release()
	}
	n.sinks.Wait()
	if n.drain != nil {
		errs = append(errs, n.drain(ctx))
	}
	for _, s := range n.subscribers {
		errs = append(errs, s.Close())
	}
	errs = append(errs, n.publisher.Close())
	if n.close != nil {
		errs = append(errs, n.close())
	}
	return errors.Join(errs...)
}
