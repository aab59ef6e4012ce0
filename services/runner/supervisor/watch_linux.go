package supervisor

import (
	"context"
	"errors"
	"os"
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

// lives reports whether the process has not ended; false when that cannot be known.
func (w watch) lives() bool {
	lives := false
	w.control(func(raw func(func(uintptr) bool)) {
		raw(func(fd uintptr) bool {
			lives = !readable(fd)
			return true
		})
	})
	return lives
}

// untilEnded waits for the end; it returns at once when that cannot be seen.
func (w watch) untilEnded(ctx context.Context) {
	if w.pidfd == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = w.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	w.control(func(raw func(func(uintptr) bool)) { raw(readable) })
}

func (w watch) control(do func(raw func(func(uintptr) bool))) {
	if w.pidfd == nil {
		return
	}
	c, err := w.pidfd.SyscallConn()
	if err != nil {
		return
	}
	do(func(f func(uintptr) bool) { _ = c.Read(f) })
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
