//go:build linux

package supervisor_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// sendCut sends a message with more files than the other side has room for: the kernel cuts them as for want of descriptors.
func sendCut(t *testing.T, c *protocol.Conn, m protocol.Message) {
	t.Helper()
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	socket, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	frame := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
	if _, _, err := socket.(*net.UnixConn).WriteMsgUnix(frame, unix.UnixRights(0, 0, 0, 0, 0, 0), nil); err != nil {
		t.Fatal(err)
	}
}

// A start whose document did not arrive is refused, and nothing is reserved; a process that is there already needs none.
func TestAStartWithoutItsDocument(t *testing.T) {
	t.Parallel()
	h := newHost(t)
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
	}()
	t.Cleanup(func() {
		_ = ours.Close()
		<-over
		_ = served.Close()
	})
	answer := func() protocol.Message {
		t.Helper()
		for {
			m, err := ours.Receive()
			if err != nil {
				t.Fatal(err)
			}
			protocol.CloseAll(m.Files)
			if m.Kind != protocol.Piped {
				return m
			}
		}
	}
	command := shell(`exec sleep 600`)
	m := protocol.Message{Kind: protocol.Start, Number: 1, Attempt: "a/1", Folder: t.TempDir(), Command: &command}
	sendCut(t, ours, m)
	if got := answer(); got.Kind != protocol.Done || got.Errno != syscall.EMFILE || got.Error == "" {
		t.Errorf("%+v", got)
	}
	if left, err := os.ReadDir(m.Folder); err != nil || len(left) > 0 {
		t.Errorf("in the attempt's folder: %v, %v", left, err)
	}
	m.Number = 2
	if err := ours.Send(m); err != nil {
		t.Fatal(err)
	}
	first := answer()
	m.Number = 3
	sendCut(t, ours, m)
	again := answer()
	if first.Kind != protocol.Started || again.Kind != protocol.Started || first.Record.PID != again.Record.PID {
		t.Errorf("%+v, then %+v", first, again)
	}
}

// A worker that could not take the pipes of a process asks for it again, and gets it; it does not take it for one that never was.
func TestStartedWithoutItsPipes(t *testing.T) {
	t.Parallel()
	ours, theirs, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	super, err := protocol.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	c := supervisor.NewClient(ours)
	over := make(chan struct{})
	go func() {
		defer close(over)
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Error(err)
			return
		}
		defer null.Close()
		files := []*os.File{null, null, null, null}
		for n := 0; ; n++ {
			m, err := super.Receive()
			if err != nil {
				return
			}
			answer := protocol.Message{Kind: protocol.Started, Number: m.Number, Record: &protocol.Record{PID: os.Getpid()}}
			switch n {
			case 0: // None came.
				_ = super.Send(answer)
			case 1: // Some.
				sendCut(t, super, answer)
			default:
				answer.Files = files
				_ = super.Send(answer)
			}
		}
	}()
	for range 2 {
		_, err := c.Start("a/1", "/", shell(`true`), nil)
		var never *process.StartError
		if !errors.Is(err, supervisor.ErrNoDescriptors) || errors.As(err, &never) || errors.Is(err, supervisor.ErrEnded) {
			t.Errorf("without files: %v", err)
		}
	}
	p, err := c.Start("a/1", "/", shell(`true`), nil)
	if err != nil || p.Stdin == nil {
		t.Errorf("with files: %+v, %v", p, err)
	}
	hangUp(p)
	p.Release()
	_ = c.Close()
	<-over
	_ = super.Close()
}
