package kafka_test

import (
	"sync"
	"testing"

	"verbatim.dev/events/kafka/kafkatest"
)

// suiteBroker is the embedded broker in a process of its own.
func suiteBroker(t *testing.T) kafkatest.Broker {
	t.Helper()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	var one sync.Mutex
	return kafkatest.Broker{Config: config(addr), Restart: func() error {
		one.Lock()
		defer one.Unlock()
		kill()
		_, kill = startChildAt(t, dir, addr)
		return nil
	}}
}

func TestConformance(t *testing.T) { kafkatest.PubSub(t, suiteBroker(t)) }

func TestReconnect(t *testing.T) {
	b := suiteBroker(t)
	t.Run("ours", func(t *testing.T) { kafkatest.Reconnect(t, b) })
	t.Run("suite", func(t *testing.T) { kafkatest.SuiteReconnect(t, b) })
}
