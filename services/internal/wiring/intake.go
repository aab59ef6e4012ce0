package wiring

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/kafka"
)

// intake is a subscriber that can pause. Paused, it is no member of its group, so that the others get the partitions and nothing lies there
// and waits; its own channel stays open, and who reads it notices nothing. What was in flight is given back, as for every close.
type intake struct {
	logger *slog.Logger
	open   func() (*kafka.Subscriber, error)
	// paused says whether it is, and gives a channel that is closed when that changes.
	paused func() (bool, <-chan struct{})

	once    sync.Once
	closing chan struct{}
	running sync.WaitGroup
}

func newIntake(l *slog.Logger, open func() (*kafka.Subscriber, error), paused func() (bool, <-chan struct{})) *intake {
	return &intake{logger: l, open: open, paused: paused, closing: make(chan struct{})}
}

// again is how long it waits before it subscribes again when that failed.
const again = time.Second

// Subscribe implements message.Subscriber. It fails when the first subscription does.
func (i *intake) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	paused, _ := i.paused()
	var s *kafka.Subscriber
	var in <-chan *message.Message
	if !paused {
		var err error
		if s, in, err = i.subscribe(ctx, topic); err != nil {
			return nil, err
		}
	}
	out := make(chan *message.Message)
	i.running.Go(func() {
		defer close(out)
		for i.turn(ctx, topic, s, in, out) {
			s, in = nil, nil
		}
	})
	return out, nil
}

func (i *intake) subscribe(ctx context.Context, topic string) (*kafka.Subscriber, <-chan *message.Message, error) {
	s, err := i.open()
	if err != nil {
		return nil, nil, err
	}
	in, err := s.Subscribe(ctx, topic)
	if err != nil {
		_ = s.Close()
		return nil, nil, err
	}
	return s, in, nil
}

// turn passes messages on until a pause begins, or waits until one is over. It reports whether there is another one.
func (i *intake) turn(ctx context.Context, topic string, s *kafka.Subscriber, in <-chan *message.Message, out chan<- *message.Message) bool {
	paused, changed := i.paused()
	var retry <-chan time.Time
	if s == nil && !paused {
		var err error
		if s, in, err = i.subscribe(ctx, topic); err != nil {
			i.logger.WarnContext(ctx, "the runner cannot take work again, it is tried again", "topic", topic, "error", err)
			retry = time.After(again)
		}
	}
	if s == nil {
		select {
		case <-changed:
			return true
		case <-retry:
			return true
		case <-ctx.Done():
		case <-i.closing:
		}
		return false
	}
	var leave sync.Once
	left := make(chan struct{})
	quit := func() {
		leave.Do(func() {
			go func() {
				defer close(left)
				_ = s.Close() // Its channel is closed when all that was in flight is settled.
			}()
		})
	}
	if paused {
		quit()
	}
	done, closing := ctx.Done(), i.closing
	for {
		select {
		case m, ok := <-in:
			if !ok {
				quit()
				<-left
				return closing != nil && done != nil
			}
			out <- m // Who reads this takes every message at once.
		case <-changed:
			if paused, changed = i.paused(); paused {
				quit()
			}
		case <-closing:
			closing = nil
			quit()
		case <-done:
			done = nil
			quit()
		}
	}
}

// Close implements message.Subscriber.
func (i *intake) Close() error {
	i.once.Do(func() { close(i.closing) })
	i.running.Wait()
	return nil
}
