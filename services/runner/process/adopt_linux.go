package process

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt takes over a process that this program started before it executed itself anew: it is a child still, and its number is kept, unless
// it is gone (reaped by somebody else).
func Adopt(pid int, startedAt time.Time, gone bool, stdin, stdout, stderr *os.File) *Process {
	p := &Process{PID: pid, StartedAt: startedAt, Stdin: stdin, Stdout: stdout, Stderr: stderr, gone: gone}
	if gone {
		return p
	}
	// Without one Wait waits in a thread.
	if fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK); err == nil {
		p.handle = exitHandle{os.NewFile(uintptr(fd), "pidfd")}
	}
	return p
}

// Gone reports whether the number is not the process's any more.
func (p *Process) Gone() bool { return p.released() }

// Unblocked lets a thread fork for which signals were blocked: what it starts inherits that, and would not hear a TERM. A supervisor blocks
// them while it executes itself anew, and Go goes on as it finds them.
func Unblocked(start func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockUnblocked()
		start()
	}()
	<-done
}
