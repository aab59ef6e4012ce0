package supervisor

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watch sees the end of a process that is not a child. It is a pidfd, opened while the supervisor keeps the number
// from being given away.
type watch struct{ pidfd *os.File }

func openWatch(pid int) watch {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return watch{}
	}
	return watch{os.NewFile(uintptr(fd), "pidfd")}
}

// lives reports whether the process has not ended; false when that cannot be known. It never waits for untilEnded, which
// holds the file's read lock: so Control and not Read.
func (w watch) lives() bool {
	lives := false
	if c := w.raw(); c != nil {
		_ = c.Control(func(fd uintptr) { lives = !readable(fd) })
	}
	return lives
}

// untilEnded waits for the end; it returns at once when that cannot be seen.
func (w watch) untilEnded(ctx context.Context) {
	c := w.raw()
	if c == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = w.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = c.Read(readable)
}

func (w watch) raw() syscall.RawConn {
	if w.pidfd == nil {
		return nil
	}
	c, err := w.pidfd.SyscallConn()
	if err != nil {
		return nil
	}
	return c
}

// readable is what a pidfd is once its process has ended (pidfd_open(2)).
func readable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 || (err != nil && !errors.Is(err, unix.EINTR))
}

func (w watch) close() {
	if w.pidfd != nil {
		_ = w.pidfd.Close()
	}
}
