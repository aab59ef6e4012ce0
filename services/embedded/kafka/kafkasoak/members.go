package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/kafka"
)

// publish keeps the rate until ctx ends; what was begun is finished.
func (s *soak) publish(ctx context.Context, wg *sync.WaitGroup) error {
	p, err := kafka.NewPublisher(s.config, kafka.PublisherOptions{})
	if err != nil {
		return err
	}
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() { errs[w] = s.write(ctx, p, w) })
	}
	wg.Wait()
	return errors.Join(append(errs, p.Close())...)
}

// write publishes for every writers-th key in turn, in calls of some messages. After an error the call is made again
// with the same messages, as a producer does that must not lose any.
func (s *soak) write(ctx context.Context, p *kafka.Publisher, w int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	began, written := time.Now(), 0
	next := map[int]int{}
	for {
		due := int(time.Since(began).Minutes() * perMinute / writers)
		for written < due {
			var batch []*message.Message
			for range min(due-written, 200) {
				k := w + writers*(written%(keys/writers))
				m := message.NewMessage(fmt.Sprintf("%d/%d", k, next[k]), []byte("soak"))
				m.Metadata["ce_partitionkey"] = strconv.Itoa(k)
				batch = append(batch, m)
				next[k]++
				written++
			}
			for tries := 0; ; tries++ {
				err := p.Publish(topic, batch...)
				if err == nil {
					break
				}
				if tries == 3 {
					return err
				}
			}
			s.log.publish(batch)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// member joins for some seconds, leaves, and joins again.
func (s *soak) member(ctx context.Context, n int) {
	for ctx.Err() == nil {
		stay, cancel := context.WithTimeout(ctx, 5*time.Second+rand.N(15*time.Second))
		if err := s.visit(stay, rand.N(3) == 0); err != nil && ctx.Err() == nil {
			fmt.Fprintf(s.out, "member %d: %v\n", n, err)
		}
		cancel()
	}
}

// visit consumes until ctx ends. A walk-out leaves without settling what it holds.
func (s *soak) visit(ctx context.Context, walkOut bool) (err error) {
	sub, err := kafka.NewSubscriber(s.config, kafka.SubscriberOptions{Group: group, MaxInFlight: 200, DrainTimeout: 500 * time.Millisecond})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	messages, err := sub.Subscribe(context.WithoutCancel(ctx), topic)
	if err != nil {
		return err
	}
	s.joins.Add(1)
	flush := time.NewTicker(20 * time.Millisecond)
	defer flush.Stop()
	var held []*message.Message
	size := 1 + rand.N(60)
	for {
		select {
		case m := <-messages:
			s.log.deliver(m)
			if held = append(held, m); len(held) < size {
				continue
			}
		case <-flush.C:
		case <-ctx.Done():
			if walkOut {
				s.walkouts.Add(1)
				return nil
			}
			s.settle(held)
			return nil
		}
		s.settle(held)
		held, size = nil, 1+rand.N(60)
	}
}

// settle acknowledges in any order; now and then it refuses one, and says nothing of those that come back with it.
func (s *soak) settle(held []*message.Message) {
	rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
	for i, m := range held {
		if rand.N(2000) == 0 {
			s.refused.Add(1)
			m.Nack()
			held = held[:i]
			break
		}
	}
	for _, m := range held {
		s.log.acknowledge(m)
		m.Ack()
	}
}

// watchCommits compares what the broker has with what was acknowledged.
func (s *soak) watchCommits(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	a, err := kafka.NewAdmin(s.config)
	if err != nil {
		s.log.promise("watch commits: %v", err)
		return
	}
	defer a.Close()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		offsets, err := a.CommittedOffsets(ask, group, topic)
		cancel()
		if err != nil {
			continue // the broker is away
		}
		s.log.committed(offsets)
	}
}
