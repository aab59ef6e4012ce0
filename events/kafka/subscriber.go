package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Defaults of SubscriberOptions.
const (
	DefaultNackDelay      = 100 * time.Millisecond
	DefaultCommitInterval = 100 * time.Millisecond
	DefaultDrainTimeout   = 5 * time.Second
	DefaultSessionTimeout = 10 * time.Second
)

// maxCommitMetadata is the default of Kafka's offset.metadata.max.bytes.
const maxCommitMetadata = 4096

// SubscriberOptions tune a Subscriber; the zero value of all but Group takes the defaults.
type SubscriberOptions struct {
	// Group is the service's name; the consumer group of a topic is GroupID(Group, topic).
	Group string
	// MaxInFlight bounds, per partition, the messages between the oldest unacknowledged one and the newest
	// handed out. Default 1, Watermill's order: the next message comes after the Ack.
	MaxInFlight int
	// MaxInFlightBytes bounds, per partition, the keys and values of unacknowledged messages: no other is handed out above it, but one
	// always is. 0: only their number is bounded.
	MaxInFlightBytes int
	// FromEnd starts a group that never committed at the end of the log instead of at its beginning.
	FromEnd bool
	// SkipLost lets a partition go on at the first offset there is when retention removed what comes
	// next. The alarm is raised all the same. Otherwise the partition stops.
	SkipLost bool
	// OnAlarm is called when a partition stops or skips: the error is an *OffsetError or says that a
	// record cannot be read. It repeats while the partition is stopped and must not block.
	OnAlarm func(topic string, partition int, err error)
	// OnOwned is called when a partition becomes this member's, before its first message. The context ends when the partition may be
	// somebody else's. It must not block.
	OnOwned func(owned context.Context, topic string, partition int)
	// OnJoined is called with the name under which the topic's group knows this member, each time it has joined: whoever is to go on in
	// its place when it was killed needs that for Admin.Leave. Nothing is delivered before it returns.
	OnJoined func(topic, member string)
	// NackDelay is how long a partition rests after a Nack.
	NackDelay time.Duration
	// CommitInterval is how long acknowledged offsets are collected before they are committed.
	CommitInterval time.Duration
	// CommitMetadata, if not nil, gives what is stored beside every offset committed, see Admin.Commits: who committed it, for example.
	// It is asked once each time a partition is assigned, before its first message. before is the last commit there, which is
	// nobody's to change any more, and zero when there was none: what it says can be carried over. At most 4096 bytes; it must not block.
	CommitMetadata func(before Commit) string
	// DrainTimeout is how long Close, or the end of Subscribe's context, waits for messages in flight.
	DrainTimeout time.Duration
	// SessionTimeout is how long the group waits for a silent member before it gives its partitions
	// away. Brokers take 6 s to 5 min by default.
	SessionTimeout time.Duration
	// FetchBytes bounds one fetched response per partition, and again what is uncompressed of it at one time; one batch is always. Three times
	// as much may be in memory.
	FetchBytes int
	// OwnRecords gives every message memory of its own, at the cost of a copy. Otherwise a message that is in flight for long keeps all that were
	// written together with it in memory, which may be some MiB.
	OwnRecords bool
	// InitPartitions is the partition count of topics made by SubscribeInitialize. Default 1.
	InitPartitions int
}

func (o SubscriberOptions) withDefaults() SubscriberOptions {
	o.MaxInFlight = orDefault(o.MaxInFlight, 1)
	o.NackDelay = orDefault(o.NackDelay, DefaultNackDelay)
	o.CommitInterval = orDefault(o.CommitInterval, DefaultCommitInterval)
	o.DrainTimeout = orDefault(o.DrainTimeout, DefaultDrainTimeout)
	o.SessionTimeout = orDefault(o.SessionTimeout, DefaultSessionTimeout)
	o.FetchBytes = orDefault(o.FetchBytes, DefaultFetchBytes)
	o.InitPartitions = orDefault(o.InitPartitions, 1)
	if o.OnOwned == nil {
		o.OnOwned = func(context.Context, string, int) {}
	}
	if o.OnJoined == nil {
		o.OnJoined = func(string, string) {}
	}
	if o.OnAlarm == nil {
		o.OnAlarm = func(string, int, error) {}
	}
	return o
}

func (o SubscriberOptions) validate() error {
	var errs []error
	if o.Group == "" {
		errs = append(errs, errors.New("group: is empty"))
	}
	for name, v := range map[string]int64{
		"max in flight": int64(o.MaxInFlight), "max in flight bytes": int64(o.MaxInFlightBytes), "nack delay": int64(o.NackDelay), "commit interval": int64(o.CommitInterval),
		"drain timeout": int64(o.DrainTimeout), "session timeout": int64(o.SessionTimeout), "fetch bytes": int64(o.FetchBytes),
		"init partitions": int64(o.InitPartitions),
	} {
		if v < 0 {
			errs = append(errs, fmt.Errorf("%s: is negative", name))
		}
	}
	return errors.Join(errs...)
}

// Subscriber reads topics as a member of consumer groups; safe for concurrent use. It implements
// message.Subscriber.
type Subscriber struct {
	config  Config
	options SubscriberOptions
	link    *link
	closing chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber checks the configuration; Subscribe connects.
func NewSubscriber(c Config, o SubscriberOptions) (*Subscriber, error) {
	if err := errors.Join(c.Validate(), o.validate()); err != nil {
		return nil, fmt.Errorf("kafka subscriber: %w", err)
	}
	return &Subscriber{config: c, options: o.withDefaults(), link: newLink(c), closing: make(chan struct{})}, nil
}

// subscribeTimeout bounds what Subscribe does before it returns.
const subscribeTimeout = 10 * time.Second

// Subscribe joins the topic's consumer group. It fails within 10 s when no broker answers or the topic does
// not exist; after that nothing but ctx and Close ends the channel.
//
// Every message must be acknowledged or not acknowledged. The messages of a partition come in order, those of
// different partitions mix. A message's context has ctx's values and ends when the message is settled and when
// its partition is lost. When ctx ends or on Close no more messages come, see Stopping; those in flight
// have DrainTimeout to be settled, then their contexts end and the channel is closed.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if !validName(s.config.wireTopic(topic)) {
		return nil, fmt.Errorf("subscribe: %q is no topic name", cut(topic, 64))
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, ErrClosed)
	}
	s.running.Add(1)
	s.mu.Unlock()

	if err := s.known(ctx, topic); err != nil {
		s.running.Done()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	sub, err := newSubscription(ctx, s, topic)
	if err != nil {
		s.running.Done()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	go func() {
		defer s.running.Done()
		sub.run()
	}()
	return sub.out, nil
}

// known returns when the topic exists.
func (s *Subscriber) known(ctx context.Context, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, subscribeTimeout)
	defer cancel()
	began := time.Now()
	for wait := (pause{}); ; {
		_, err := s.link.partitions(ctx, s.config.wireTopic(topic))
		switch {
		case err == nil:
			return nil
		case missingTopic(err) && time.Since(began) > missingTopicGrace:
			return ErrUnknownTopic
		case !retriable(err) && !missingTopic(err):
			return err
		}
		select {
		case <-s.closing:
			return ErrClosed
		default:
		}
		s.link.refresh()
		if !wait.sleep(ctx) {
			return unreachable(s.config, err)
		}
	}
}

// initializeTimeout bounds SubscribeInitialize: a busy broker takes long for a topic when many are made at once.
const initializeTimeout = 30 * time.Second

// SubscribeInitialize creates the topic when it does not exist, within 30 s. It is for tests and tools; services
// find their topics made, see EnsureTopics.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(context.Background(), initializeTimeout)
	defer cancel()
	return (&Admin{config: s.config, link: s.link}).create(ctx, []Topic{{Name: topic, Partitions: s.options.InitPartitions}})
}

// Close ends every subscription, see Subscribe, and releases the connections.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.running.Wait()
	s.link.close()
	return nil
}
