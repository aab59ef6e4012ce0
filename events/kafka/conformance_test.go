package kafka_test

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"verbatim.dev/events/kafka"
)

// TestPubSub is Watermill's public conformance suite.
func TestPubSub(t *testing.T) {
	b := startBroker(t)
	build := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		p, err := kafka.NewPublisher(b.config(), kafka.PublisherOptions{Key: suiteKey(t)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := kafka.NewSubscriber(b.config(), kafka.SubscriberOptions{
			Group: group, InitPartitions: 3, DrainTimeout: time.Second, NackDelay: 5 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		// Some tests of the suite leave what they made open.
		t.Cleanup(func() { _, _ = p.Close(), s.Close() })
		return p, s
	}
	features := tests.Features{
		ConsumerGroups: true, GuaranteedOrder: true, Persistent: true, NewSubscriberReceivesOldMessages: true,
	}
	if !raceDetector {
		// The suite's TestReconnect (v1.5.2) reads and appends to one slice from two goroutines, so under the
		// race detector it fails whatever it tests. TestBrokerRestartsInTheMiddle stands in for it there.
		features.RestartServiceCommand = restartOnSignal(t, b)
	}
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		group := "suite"
		if strings.Contains(t.Name(), "TestNewSubscriberReceivesOldMessages") {
			// The subscribers of this test are to be independent, which in Kafka means a group each.
			group = watermill.NewShortUUID()
		}
		return build(t, group)
	}, build)
}

// restartOnSignal returns a command that restarts the broker, which lives in this process.
func restartOnSignal(t *testing.T, b *broker) []string {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGUSR1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range signals {
			b.restart()
		}
	}()
	t.Cleanup(func() {
		signal.Stop(signals)
		close(signals)
		<-done
	})
	return []string{"kill", "-USR1", strconv.Itoa(os.Getpid())}
}

// suiteKey spreads messages over the partitions, but for the tests that are about order: those have a
// key per kind of message.
func suiteKey(t *testing.T) func(string, *message.Message) []byte {
	if strings.Contains(t.Name(), "TestPublishSubscribeInOrder") || strings.Contains(t.Name(), "TestNoAck") {
		return func(_ string, m *message.Message) []byte { return m.Payload }
	}
	return func(_ string, m *message.Message) []byte { return []byte(m.UUID) }
}
