//go:build !race

package kafkatest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
)

// SuiteReconnect is the suite's own TestReconnect.
func SuiteReconnect(t *testing.T, b Broker) {
	features := Features()
	features.RestartServiceCommand = b.restartCommand(t)
	context := tests.TestContext{TestID: tests.NewTestID(), Features: features}
	tests.TestReconnect(t, context, func(t *testing.T) (message.Publisher, message.Subscriber) {
		p, s := b.build(t)
		return p, &late{Subscriber: s}
	})
}

// late holds the last distinct message back, until its publisher has surely been told and counted.
type late struct {
	message.Subscriber
	running sync.WaitGroup
}

const lateBy = time.Second

func (l *late) SubscribeInitialize(topic string) error {
	return l.Subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic)
}

func (l *late) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := l.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	l.running.Go(func() {
		defer close(out)
		seen := map[string]bool{}
		for m := range in {
			if seen[m.UUID] = true; len(seen) == reconnectMessages {
				<-time.After(lateBy)
			}
			select {
			case out <- m:
			case <-m.Context().Done():
			}
		}
	})
	return out, nil
}

func (l *late) Close() error {
	err := l.Subscriber.Close()
	l.running.Wait()
	return err
}
