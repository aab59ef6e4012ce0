//go:build race

package kafkatest

import "testing"

// SuiteReconnect is Reconnect here: the race detector stops the suite's own test, see the package's comment.
func SuiteReconnect(t *testing.T, b Broker) { Reconnect(t, b) }
