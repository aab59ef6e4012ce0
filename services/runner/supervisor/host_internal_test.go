package supervisor

import (
	"log/slog"
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/protocol"
)

// The reaper has the lock, or waits for it. What a file system is asked about a command is asked without it: one that does not answer
// would keep every other process from being started.
func TestACommandIsLookedForWithoutTheLock(t *testing.T) {
	t.Parallel()
	h := NewHost(slog.New(slog.DiscardHandler))
	h.family.forking.Lock()
	defer h.family.forking.Unlock()
	for reason, command := range map[executionv1.StartFailureReason]protocol.Command{
		executionv1.StartFailureReason_START_FAILURE_REASON_DIRECTORY:         {Argv: []string{"true"}, Directory: "/no/such/folder"},
		executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND: {Argv: []string{"/no/such/command"}, Directory: "/"},
	} {
		answered := make(chan protocol.Record, 1)
		go func() {
			_, record := h.fork(protocol.Message{Command: &command}, nil)
			answered <- record
		}()
		select {
		case r := <-answered:
			if r.Failure == nil || r.Failure.Reason != reason {
				t.Errorf("%+v, want %s", r.Failure, reason)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s waits for the lock", reason)
		}
	}
}
