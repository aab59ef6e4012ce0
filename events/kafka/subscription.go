package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	kafkago "github.com/segmentio/kafka-go"
)

const (
	// heartbeatInterval is also how long a member needs to notice that another one joins.
	heartbeatInterval = 250 * time.Millisecond
	// joinBackoff is the rest after a failed join.
	joinBackoff = 250 * time.Millisecond
	// rebalanceTimeout is how long the coordinator waits for the members it knows to join again. Those that
	// live do within a heartbeat and revokeGrace. After a broker restarted, kafka-go joins as a new member
	// and the old one is waited for in vain, so this is also how long deliveries pause then.
	rebalanceTimeout = 3 * time.Second
	// coordinatorTimeout bounds one request to the group's coordinator.
	coordinatorTimeout = 5 * time.Second
	// revokeGrace is how long messages of a lost partition may take to notice that their context ended,
	// before the member joins again and may be given the same messages.
	revokeGrace = time.Second
)

// subscription is one Subscribe: a member of the topic's group.
type subscription struct {
	subscriber *Subscriber
	topic      string
	out        chan *message.Message
	handovers  chan *handover
	group      *kafkago.ConsumerGroup
	stop       context.Context // done: hand out no more, drain
	stopped    context.CancelFunc
	messages   context.Context // parent of the messages' contexts: Subscribe's values, ends after the drain
	drained    context.CancelFunc
}

func newSubscription(ctx context.Context, s *Subscriber, topic string) (*subscription, error) {
	start := kafkago.FirstOffset
	if s.options.FromEnd {
		start = kafkago.LastOffset
	}
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID: s.config.wireGroup(s.options.Group, topic), Brokers: s.config.Brokers, Topics: []string{s.config.wireTopic(topic)},
		Dialer: s.link.dialer(), StartOffset: start,
		HeartbeatInterval: heartbeatInterval, SessionTimeout: s.options.SessionTimeout,
		RebalanceTimeout: rebalanceTimeout,
		JoinGroupBackoff: joinBackoff, Timeout: coordinatorTimeout,
	})
	if err != nil {
		return nil, err
	}
	stop, stopped := context.WithCancel(ctx)
	messages, drained := context.WithCancel(context.WithoutCancel(ctx))
	return &subscription{
		subscriber: s, topic: topic, out: make(chan *message.Message), handovers: make(chan *handover), group: group,
		stop: stop, stopped: stopped, messages: messages, drained: drained,
	}, nil
}

func (s *subscription) run() {
	defer close(s.out)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		select {
		case <-s.subscriber.closing:
			s.stopped()
		case <-s.stop.Done():
		}
	}()
	pump := make(chan struct{})
	go func() { defer close(pump); s.pump() }()
	s.generations()
	close(s.handovers)
	<-pump
	s.stopped()
	s.drained()
	<-watcher
	if err := s.group.Close(); err != nil {
		s.subscriber.config.logger().Warn("leave group", "topic", s.topic, "error", err)
	}
}

// generations takes part in one generation of the group after the other.
func (s *subscription) generations() {
	log := s.subscriber.config.logger().With("topic", s.topic, "group", s.subscriber.options.Group)
	failing := false
	for {
		gen, err := s.group.Next(s.stop)
		switch {
		case s.stop.Err() != nil, errors.Is(err, kafkago.ErrGroupClosed):
			return
		case err != nil:
			if !failing {
				log.Warn("group cannot be joined, trying again", "error", err)
			}
			failing = true
			continue
		}
		failing = false
		s.subscriber.options.OnJoined(s.topic, gen.MemberID)
		assigned := gen.Assignments[s.subscriber.config.wireTopic(s.topic)]
		log.Info("joined group", "generation", gen.ID, "partitions", len(assigned))
		ended := make(chan struct{})
		gen.Start(func(owned context.Context) {
			defer close(ended)
			s.generation(owned, gen, assigned)
		})
		<-ended
	}
}

// generation serves the assigned partitions until the generation ends or the subscription stops. It is one
// function for all of them, because kafka-go ends a generation as soon as one of its functions returns, and while
// draining the member must stay.
func (s *subscription) generation(owned context.Context, gen *kafkago.Generation, assigned []kafkago.PartitionAssignment) {
	if len(assigned) == 0 {
		select {
		case <-owned.Done():
		case <-s.stop.Done():
			s.leave()
		}
		return
	}
	var wg sync.WaitGroup
	for _, a := range assigned {
		p := newPartition(s, &commits{subscriber: s.subscriber, gen: gen, topic: s.subscriber.config.wireTopic(s.topic)}, a)
		wg.Go(func() { p.run(owned) })
	}
	wg.Wait()
	if s.stop.Err() != nil {
		s.leave()
	}
}

// leave makes kafka-go see that the group is closed before it sees that the generation has ended.
// Otherwise it would join again only to leave, and wait for every other member meanwhile.
func (s *subscription) leave() {
	go func() { _ = s.group.Close() }()
	for {
		if _, err := s.group.Next(context.Background()); errors.Is(err, kafkago.ErrGroupClosed) {
			return
		}
	}
}

// committer commits a partition's offset and reports failure.
type committer interface {
	// sign gives the commits to come their metadata, and returns the commit before them, zero when there is none.
	sign(ctx context.Context, partition int) (Commit, error)
	commit(partition int, offset int64) error
}

// commits is a committer for one generation: once the group has moved on, the coordinator refuses.
type commits struct {
	subscriber *Subscriber
	gen        *kafkago.Generation
	topic      string // on the wire
	metadata   string
}

// sign asks after the join: from then on the coordinator refuses what former owners commit.
func (c *commits) sign(ctx context.Context, partition int) (Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, coordinatorTimeout)
	defer cancel()
	all, err := c.subscriber.link.commits(ctx, c.gen.GroupID, c.topic, []int{partition})
	if err != nil {
		return Commit{}, err
	}
	before := all[partition]
	metadata := c.subscriber.options.CommitMetadata(before)
	if len(metadata) > maxCommitMetadata {
		return Commit{}, fmt.Errorf("commit metadata: has %d bytes, the limit is %d", len(metadata), maxCommitMetadata)
	}
	c.metadata = metadata
	return before, nil
}

func (c *commits) commit(partition int, offset int64) error {
	var err error
	if c.subscriber.options.CommitMetadata == nil {
		err = c.gen.CommitOffsets(map[string]map[int]int64{c.topic: {partition: offset}})
	} else {
		err = c.signed(partition, offset)
	}
	if err != nil {
		return fmt.Errorf("commit offset %d: %w", offset, err)
	}
	return nil
}

// signed commits with metadata, which a Generation does not know of.
func (c *commits) signed(partition int, offset int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), coordinatorTimeout)
	defer cancel()
	res, err := c.subscriber.link.client.OffsetCommit(ctx, &kafkago.OffsetCommitRequest{
		GroupID: c.gen.GroupID, GenerationID: int(c.gen.ID), MemberID: c.gen.MemberID, Topics: map[string][]kafkago.OffsetCommit{
			c.topic: {{Partition: partition, Offset: offset, Metadata: c.metadata}},
		},
	})
	if err != nil {
		return err
	}
	for _, p := range res.Topics[c.topic] {
		if p.Partition == partition {
			return p.Error
		}
	}
	return errors.New("the coordinator did not answer for the partition")
}
