package supervisor

import (
	"log/slog"
	"sync"
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
			m := protocol.Message{Command: &command}
			spec, err := specOf(m)
			_, record := h.fork(m, spec, err)
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

// Whoever asks for an attempt that is just being started waits, and keeps nobody else from being answered; then it gets that process.
func TestASecondStartWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	h := NewHost(slog.New(slog.DiscardHandler))
	defer h.Close()
	ours, theirs, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	served, err := protocol.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = h.Serve(served, nil)
		_ = served.Close()
	}()
	receive := func() protocol.Message {
		m, err := ours.Receive()
		if err != nil {
			t.Fatal(err)
		}
		protocol.CloseAll(m.Files)
		return m
	}
	send := func(m protocol.Message) {
		if err := ours.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	request := protocol.Message{
		Kind: protocol.Start, Attempt: "a/1", Folder: t.TempDir(), Command: &protocol.Command{Argv: []string{"/bin/sleep", "600"}, Directory: "/"},
	}
	h.family.forking.Lock()
	unlock := sync.OnceFunc(h.family.forking.Unlock)
	defer func() {
		unlock()
		_ = ours.Close()
		<-over
	}()
	request.Number = 1
	send(request)
	if m := receive(); m.Kind != protocol.Piped {
		t.Fatalf("%+v, want the pipes", m)
	}
	request.Number = 2
	send(request)
	for n := uint64(3); n < 100; n++ {
		send(protocol.Message{Kind: protocol.Ready, Number: n})
		if m := receive(); m.Number != n {
			t.Fatalf("%+v, want the answer to %d", m, n)
		}
	}
	unlock()
	one, two := receive(), receive()
	if one.Kind != protocol.Started || two.Kind != protocol.Started || one.Record.PID != two.Record.PID {
		t.Errorf("%+v, then %+v", one, two)
	}
}
