// Package kafkatest holds the tests that every broker of this project has to stand, whoever wrote it: Watermill's
// public conformance suite, once, many at a time, and with the broker killed in the middle. Only tests import it.
//
// # The suite's TestReconnect
//
// As of Watermill v1.5.2 (pubsub/tests/test_pubsub.go) that test has three defects of its own. One goroutine
// appends to publishedMessages while the test reads it, with nothing between them, so the race detector
// stops it whatever the transport does. And it compares as soon as the last message has been received, when the
// publisher of that message may not have been told yet, or may not have been counted; then it reports that one message too
// many was received. And the goroutine that counts never ends, see [SuiteLeak]. So under -race [Reconnect] asks the same with the same numbers (10,000 messages, 100
// publishers, restarts after a third and after a half), waiting for the publishers before it compares, and asks for
// order besides. Without -race the suite's own test runs too, behind a subscriber that holds the last message back
// for a moment.
package kafkatest

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"verbatim.dev/events/kafka"
)

// Broker is what the tests run on.
type Broker struct {
	Config kafka.Config
	// Restart kills the broker (SIGKILL) and starts it again on its port with its data; it returns when
	// the broker listens.
	Restart func() error
}

// SuiteLeak is the goroutine that the suite's TestReconnect leaves behind: nobody closes the channel it reads.
const SuiteLeak = "github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2"

// Features is what the transport claims. Nothing is switched off.
func Features() tests.Features {
	return tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true, NewSubscriberReceivesOldMessages: true}
}

// PubSub runs the suite once.
func PubSub(t *testing.T, b Broker) { tests.TestPubSub(t, Features(), b.build, b.buildGroup) }

// Stress runs the suite ten times at once (STRESS_TEST_COUNT).
func Stress(t *testing.T, b Broker) { tests.TestPubSubStressTest(t, Features(), b.build, b.buildGroup) }

func (b Broker) build(t *testing.T) (message.Publisher, message.Subscriber) {
	group := "suite"
	if strings.Contains(t.Name(), "TestNewSubscriberReceivesOldMessages") {
		// The subscribers of this test are to be independent, which in Kafka means a group each.
		group = watermill.NewShortUUID()
	}
	return b.buildGroup(t, group)
}

func (b Broker) buildGroup(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	p, err := kafka.NewPublisher(b.Config, kafka.PublisherOptions{Key: key(t)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := kafka.NewSubscriber(b.Config, kafka.SubscriberOptions{
		Group: group, InitPartitions: 3, DrainTimeout: time.Second, NackDelay: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	// Some tests of the suite leave what they made open.
	t.Cleanup(func() { _, _ = p.Close(), s.Close() })
	return p, s
}

// key spreads messages over the partitions, but for the tests that are about order: those have a key per kind
// of message.
func key(t *testing.T) func(string, *message.Message) []byte {
	if strings.Contains(t.Name(), "TestPublishSubscribeInOrder") || strings.Contains(t.Name(), "TestNoAck") {
		return func(_ string, m *message.Message) []byte { return m.Payload }
	}
	return func(_ string, m *message.Message) []byte { return []byte(m.UUID) }
}

// restartCommand is Restart as a command, which is what the suite wants: a listener in this process does the
// work and answers ok.
func (b Broker) restartCommand(t *testing.T) []string {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answer := "ok"
			if err := b.Restart(); err != nil {
				answer = err.Error()
			}
			_, _ = fmt.Fprintln(c, answer)
			_ = c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	script := fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d && read -r answer <&3 && echo "$answer" && [[ $answer == ok ]]`, port)
	return []string{"bash", "-c", script}
}
