package output_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"verbatim.dev/services/runner/output"
)

// A pseudo-terminal answers EIO when its other side is gone: a real read error, after real bytes.
func TestReadError(t *testing.T) {
	t.Parallel()
	terminal, slave := pty(t)
	errRead, errWrite := pipe(t)
	r := &rig{out: slave, err: errWrite, got: make(chan struct{}, 100)}
	r.start(output.Config{ChunkBytes: 1 << 10, FlushInterval: 10 * time.Millisecond}, terminal, errRead)
	write(t, slave, "seen")
	<-r.got
	_ = slave.Close()
	write(t, errWrite, "goes on")
	seals := r.finish(t)
	var failed *output.ReadError
	if !errors.As(r.failed[stdout], &failed) || failed.Stream != stdout || failed.Offset != 4 || !errors.Is(failed, unix.EIO) {
		t.Errorf("error %v", r.failed[stdout])
	}
	if s := seals[stdout]; s.GetCapturedBytes() != 4 || s.GetPublishedBytes() != 4 {
		t.Errorf("stdout: %v", s)
	}
	if s := seals[stderr]; r.failed[stderr] != nil || s.GetCapturedBytes() != 7 {
		t.Errorf("stderr: %v, %v", r.failed[stderr], s)
	}
}

// pty opens a pseudo-terminal in raw mode.
func pty(t *testing.T) (terminal, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	terminal = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { _ = terminal.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return terminal, slave
}
