//go:build apachekafka

package kafka_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"verbatim.dev/events/kafka"
	"verbatim.dev/events/kafka/kafkatest"
)

// apache is the Apache Kafka that scripts/test-kafka started: VERBATIM_TEST_KAFKA is host:port and
// VERBATIM_TEST_KAFKA_RESTART a command that kills it and starts it again.
func apache(t *testing.T) kafkatest.Broker {
	t.Helper()
	addr, restart := os.Getenv("VERBATIM_TEST_KAFKA"), os.Getenv("VERBATIM_TEST_KAFKA_RESTART")
	if addr == "" || restart == "" {
		t.Fatal("VERBATIM_TEST_KAFKA or VERBATIM_TEST_KAFKA_RESTART is empty: use scripts/test-kafka")
	}
	return kafkatest.Broker{Config: kafka.Config{Brokers: []string{addr}}, Restart: func() error {
		if out, err := exec.Command("bash", "-c", restart).CombinedOutput(); err != nil {
			return fmt.Errorf("restart Apache Kafka: %w: %s", err, out)
		}
		return nil
	}}
}

func TestApachePubSub(t *testing.T) { kafkatest.PubSub(t, apache(t)) }

func TestApacheStress(t *testing.T) { kafkatest.Stress(t, apache(t)) }

func TestApacheReconnect(t *testing.T) {
	b := apache(t)
	t.Run("ours", func(t *testing.T) { kafkatest.Reconnect(t, b) })
	t.Run("suite", func(t *testing.T) { kafkatest.SuiteReconnect(t, b) })
}

// TestApacheFirstMessage says how long a service that was never started before waits for its first message.
func TestApacheFirstMessage(t *testing.T) {
	c := apache(t).Config
	topic := fmt.Sprintf("fresh-%d", time.Now().UnixNano())
	if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: topic, Partitions: 12}}); err != nil {
		t.Fatal(err)
	}
	fill(t, c, topic, 1)
	fastest := time.Hour
	for i := range 3 {
		d := kafkatest.Fresh(t, c, topic, fmt.Sprintf("fresh-%d", i))
		t.Logf("first message of fresh group %d after %s", i, d.Round(time.Millisecond))
		fastest = min(fastest, d)
	}
	// The fastest, because the others say how busy this machine is; the waits this is about are 3 s and 5 s.
	if fastest > 2500*time.Millisecond {
		t.Errorf("took at least %s", fastest)
	}
}

// TestApacheAppendTime: where the topic says so, a record's time is the broker's.
func TestApacheAppendTime(t *testing.T) {
	c := apache(t).Config
	for _, kind := range []string{"LogAppendTime", "CreateTime"} {
		topic := fmt.Sprintf("time-%s-%d", kind, time.Now().UnixNano())
		if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: topic, Partitions: 1, Config: map[string]string{"message.timestamp.type": kind}}}); err != nil {
			t.Fatal(err)
		}
		told := time.UnixMilli(1_700_000_000_000)
		produce(t, foreign(t, c), &kgo.Record{Topic: topic, Partition: 0, Key: []byte("k"), Timestamp: told})
		got := records(t, c, topic, 0)[0].Time
		if byBroker := time.Since(got).Abs() < time.Minute; byBroker != (kind == "LogAppendTime") || !byBroker && !got.Equal(told) {
			t.Errorf("%s: the record's time is %s", kind, got)
		}
	}
}

// TestApacheCommitMetadata: a claim says who made it.
func TestApacheCommitMetadata(t *testing.T) {
	c := apache(t).Config
	topic := fmt.Sprintf("metadata-%d", time.Now().UnixNano())
	if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: topic, Partitions: 1}}); err != nil {
		t.Fatal(err)
	}
	fill(t, c, topic, 2)
	m := receive(t, subscribe(t, subscriber(t, c, kafka.SubscriberOptions{Group: topic, CommitMetadata: signature("r1")}), topic))
	if err := kafka.CommitSync(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := commits(t, c, topic, topic)[0]; got != (kafka.Commit{Offset: 1, Metadata: "r1"}) {
		t.Errorf("committed %+v", got)
	}
}
