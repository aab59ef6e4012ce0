package kafka_test

import (
	"os"
	"testing"

	"verbatim.dev/events/kafka/kafkatest"
)

// stressCount is how many suites TestPubSubStressTest runs at once.
const stressCount = "STRESS_TEST_COUNT"

func TestPubSub(t *testing.T) {
	kafkatest.PubSub(t, kafkatest.Broker{Config: startBroker(t).config()})
}

func TestReconnect(t *testing.T) {
	c := startChild(t)
	b := kafkatest.Broker{Config: c.config(), Restart: c.restart}
	t.Run("ours", func(t *testing.T) { kafkatest.Reconnect(t, b) })
	t.Run("suite", func(t *testing.T) { kafkatest.SuiteReconnect(t, b) })
}

// TestPubSubStress runs three suites at once; make prove-transport runs ten.
func TestPubSubStress(t *testing.T) {
	if os.Getenv(stressCount) == "" {
		t.Setenv(stressCount, "3")
	}
	kafkatest.Stress(t, kafkatest.Broker{Config: startBroker(t).config()})
}
