package kafka_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"verbatim.dev/events/kafka"
	"verbatim.dev/events/kafka/kafkatest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		beBroker(dir, os.Getenv(childAddr))
		return
	}
	// Watermill's suite mostly waits; by default as many tests run at a time as there are cores.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("16")
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(kafkatest.SuiteLeak))
}

// broker is a Kafka on loopback that can be restarted on its port with its data.
type broker struct {
	t   testing.TB
	dir string

	mu      sync.Mutex
	addr    string
	cluster *kfake.Cluster
}

func startBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{t: t, dir: t.TempDir(), addr: "127.0.0.1:0"}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *broker) start() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	b.cluster, err = kfake.NewCluster(
		kfake.NumBrokers(1), kfake.DataDir(b.dir),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": "8388608"}),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) { return net.Listen(network, b.addr) }),
	)
	if err != nil {
		b.t.Fatalf("start broker: %v", err)
	}
	b.addr = b.cluster.ListenAddrs()[0]
}

func (b *broker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cluster != nil {
		b.cluster.Close()
		b.cluster = nil
	}
}

func (b *broker) restart() { b.stop(); b.start() }

func (b *broker) config() kafka.Config {
	b.mu.Lock()
	defer b.mu.Unlock()
	return kafka.Config{Brokers: []string{b.addr}}
}

func (b *broker) topic(t testing.TB, partitions int) string {
	t.Helper()
	name := fmt.Sprintf("topic-%d", topics.next())
	if err := kafka.EnsureTopics(t.Context(), b.config(), []kafka.Topic{{Name: name, Partitions: partitions}}); err != nil {
		t.Fatal(err)
	}
	return name
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

var topics counter

func publisher(t testing.TB, c kafka.Config, o kafka.PublisherOptions) *kafka.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close publisher: %v", err)
		}
	})
	return p
}

func subscriber(t testing.TB, c kafka.Config, o kafka.SubscriberOptions) *kafka.Subscriber {
	t.Helper()
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 200 * time.Millisecond
	}
	s, err := kafka.NewSubscriber(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close subscriber: %v", err)
		}
	})
	return s
}

func subscribe(t testing.TB, s *kafka.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

// receive returns the next message within a time that only a broken implementation needs.
func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-messages:
		if !ok {
			t.Fatal("channel is closed")
		}
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no message")
	}
	return nil
}

func position(t testing.TB, m *message.Message) kafka.Position {
	t.Helper()
	p, ok := kafka.PositionFromContext(m.Context())
	if !ok {
		t.Fatal("message has no position")
	}
	return p
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // The pace of asking; the broker sends no signal.
	}
}

func keyed(key, id, payload string) *message.Message {
	m := message.NewMessage(id, []byte(payload))
	m.Metadata["ce_partitionkey"] = key
	return m
}
