package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"verbatim.dev/events/kafka"
)

// TestPubSub is Watermill's public conformance suite. Its TestReconnect is not among them: as of v1.5.2 it
// appends to and reads one slice from two goroutines, and compares before the last publisher has been
// counted. TestBrokerRestartsInTheMiddle asks the same and the order besides.
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
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		group := "suite"
		if strings.Contains(t.Name(), "TestNewSubscriberReceivesOldMessages") {
			// The subscribers of this test are to be independent, which in Kafka means a group each.
			group = watermill.NewShortUUID()
		}
		return build(t, group)
	}, build)
}

// suiteKey spreads messages over the partitions, but for the tests that are about order: those have a
// key per kind of message.
func suiteKey(t *testing.T) func(string, *message.Message) []byte {
	if strings.Contains(t.Name(), "TestPublishSubscribeInOrder") || strings.Contains(t.Name(), "TestNoAck") {
		return func(_ string, m *message.Message) []byte { return m.Payload }
	}
	return func(_ string, m *message.Message) []byte { return []byte(m.UUID) }
}
