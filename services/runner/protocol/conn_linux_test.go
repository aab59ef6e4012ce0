package protocol_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"verbatim.dev/services/runner/protocol"
)

// leave lets the process open so many descriptors more, until the function that it returns is called.
func leave(t *testing.T, n uint64) (restore func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	next, err := os.Open(os.DevNull) // It gets the lowest number that is free.
	if err != nil {
		t.Fatal(err)
	}
	less := syscall.Rlimit{Cur: uint64(next.Fd()) + n, Max: before.Max}
	_ = next.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &less); err != nil {
		t.Fatal(err)
	}
	restore = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(restore)
	return restore
}

// A message of which the files cannot all be taken comes without any of them, and says so; the next one is whole. It runs alone: it
// changes and counts what belongs to the whole test process.
func TestMessageWithoutRoomForItsFiles(t *testing.T) {
	for room := range uint64(2) {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			a, b := pair(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			m := protocol.Message{Kind: protocol.Started, Number: 7, Files: []*os.File{r, w}}
			before := descriptors(t)
			restore := leave(t, room)
			if err := a.Send(m); err != nil {
				t.Fatal(err)
			}
			got, err := b.Receive()
			restore()
			if err != nil || got.Number != m.Number || !got.Cut || len(got.Files) > 0 {
				t.Errorf("with too little room: %+v, %v", got, err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors became %d", before, after)
			}
			if err := a.Send(m); err != nil {
				t.Fatal(err)
			}
			got, err = b.Receive()
			if err != nil || got.Cut || len(got.Files) != 2 {
				t.Errorf("with room: %+v, %v", got, err)
			}
			protocol.CloseAll(got.Files)
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
