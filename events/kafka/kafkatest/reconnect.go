package kafkatest

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/kafka"
)

// The numbers of the suite's TestReconnect.
const (
	reconnectMessages   = 10_000
	reconnectPublishers = 100
)

// silence is how long no message may come. A killed Apache Kafka reads its log again before it answers: 15 s on a
// quiet machine with two cores, 36 s measured on a busy one; and both kills may come before the next message.
const silence = 3 * time.Minute

// Reconnect publishes from many goroutines and consumes while the broker is killed and restarted twice. Every
// message that was acknowledged arrives, nothing else does, and first deliveries keep the order per key.
func Reconnect(t *testing.T, b Broker) {
	p, s := b.buildGroup(t, "reconnect")
	topic := fmt.Sprintf("reconnect-%d", time.Now().UnixNano())
	if err := s.(message.SubscribeInitializer).SubscribeInitialize(topic); err != nil {
		t.Fatal(err)
	}
	messages, err := s.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var restarts, publishers sync.WaitGroup
	var published atomic.Int64
	const each = reconnectMessages / reconnectPublishers
	for k := range reconnectPublishers {
		publishers.Go(func() {
			for i := range each {
				m := message.NewMessage(fmt.Sprintf("%d/%d", k, i), []byte("x"))
				m.Metadata["ce_partitionkey"] = strconv.Itoa(k)
				// Publish waits for the broker by itself: an error here is a failure.
				if err := p.Publish(topic, m); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
				if n := published.Add(1); n == reconnectMessages/3 || n == reconnectMessages/2 {
					restarts.Go(func() {
						if err := b.Restart(); err != nil {
							t.Errorf("restart: %v", err)
						}
					})
				}
			}
		})
	}
	next := make([]int, reconnectPublishers)
	for seen := 0; seen < reconnectMessages; {
		m := receive(t, messages, seen)
		k, n := split(t, m.UUID)
		switch {
		case n == next[k]:
			next[k]++
			seen++
		case n > next[k]:
			t.Fatalf("key %d: message %d came before %d", k, n, next[k])
		}
		m.Ack()
	}
	publishers.Wait()
	restarts.Wait()
	if got := published.Load(); got != reconnectMessages {
		t.Errorf("received %d, published %d", reconnectMessages, got)
	}
}

func receive(t *testing.T, messages <-chan *message.Message, seen int) *message.Message {
	t.Helper()
	select {
	case m, ok := <-messages:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return m
	case <-time.After(silence):
		t.Fatalf("no message for %s after %d", silence, seen)
	}
	return nil
}

func split(t *testing.T, id string) (k, n int) {
	t.Helper()
	left, right, _ := strings.Cut(id, "/")
	k, err1 := strconv.Atoi(left)
	n, err2 := strconv.Atoi(right)
	if err1 != nil || err2 != nil || k < 0 || k >= reconnectPublishers {
		t.Fatalf("a message that nobody published: %q", id)
	}
	return k, n
}

// Fresh measures what a service sees at its first start: from Subscribe with a group nobody has used to the
// first message.
func Fresh(t testing.TB, c kafka.Config, topic, group string) time.Duration {
	t.Helper()
	s, err := kafka.NewSubscriber(c, kafka.SubscriberOptions{Group: group, DrainTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	began := time.Now()
	messages, err := s.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-messages:
		m.Ack()
	case <-time.After(30 * time.Second):
		t.Fatal("no message within 30 s")
	}
	return time.Since(began)
}
