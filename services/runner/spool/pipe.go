package spool

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errEmpty says that there is nothing in the pipe now.
var errEmpty = errors.New("the pipe is empty")

// pipe waits without a thread. Its deadline is the earlier of the flush time, which its reader sets, and the stop
// time, which anybody sets.
type pipe struct {
	file *os.File
	raw  syscall.RawConn

	full  bool   // A full disk was logged. Only for the reader.
	grown bool   // It was made larger, or that was tried. Only for the reader.
	rest  []byte // What is out of the pipe and could not be written yet. Only for the reader.

	mu          sync.Mutex
	flush, stop time.Time
	armed       time.Time
}

func (p *pipe) open() (err error) {
	p.raw, err = p.file.SyscallConn()
	return err
}

// wait calls move whenever there may be something, until it does not say errEmpty, or until the deadline.
func (p *pipe) wait(move func() error) (err error) {
	waitErr := p.raw.Read(func(uintptr) bool {
		err = move()
		return !errors.Is(err, errEmpty)
	})
	if waitErr != nil {
		return waitErr
	}
	return err
}

// now calls move once. It leaves the pipe without a deadline.
func (p *pipe) now(move func() error) (err error) {
	if err := p.disarm(); err != nil {
		return err
	}
	waitErr := p.raw.Read(func(uintptr) bool {
		err = move()
		return true
	})
	if waitErr != nil {
		return waitErr
	}
	return err
}

// ready says whether there is something to move: nil, errEmpty, or io.EOF. It is called from within wait or now.
func (p *pipe) ready() error {
	fd, err := number(p.file)
	if err != nil {
		return err
	}
	for {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(state, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case state[0].Revents == 0:
			return errEmpty
		case state[0].Revents&unix.POLLIN == 0 && state[0].Revents&unix.POLLHUP != 0:
			return io.EOF
		default:
			return nil
		}
	}
}

// splice moves what there is into a file. It is called from within wait or now, which hold the descriptor.
func (p *pipe) splice(to *os.File, offset int64) (n int64, err error) {
	in, err := number(p.file)
	if err != nil {
		return 0, err
	}
	out, err := number(to)
	if err != nil {
		return 0, err
	}
	if len(p.rest) > 0 {
		n, err = writeAll(out, p.rest, offset)
		p.rest = p.rest[n:]
	} else {
		n, p.rest, err = transfer(in, out, offset)
	}
	if n > 0 {
		p.full = false
	}
	if n >= pipeBytes && !p.grown {
		p.grown = true
		enlarge(in)
	}
	return n, err
}

// number is a descriptor's number, for as long as the caller keeps the file open.
func number(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(n uintptr) { fd = int(n) })
	return fd, controlErr
}

// isFull reports whether an error means that the disk, or the user's share of it, is full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// complain reports whether a full disk is worth a line in the log.
func (p *pipe) complain() bool {
	first := !p.full
	p.full = true
	return first
}

// waiting is how many bytes the kernel holds for us; 0 when it will not say.
func (p *pipe) waiting() int {
	n := 0
	if p.raw == nil {
		return 0
	}
	_ = p.raw.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), ioctlReadable); err == nil {
			n = v
		}
	})
	return n
}

// arm sets the flush time, zero for none.
func (p *pipe) arm(flush time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flush = flush
	return p.set()
}

// disarm takes the deadline away until the next arm.
func (p *pipe) disarm() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = time.Time{}
	return p.file.SetReadDeadline(time.Time{})
}

func (p *pipe) stopAt(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop.IsZero() || at.Before(p.stop) {
		p.stop = at
		_ = p.set() // An error means that the pipe is closed: then nobody waits on it.
	}
}

func (p *pipe) stopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.stop.IsZero() && !time.Now().Before(p.stop)
}

func (p *pipe) set() error {
	deadline := p.flush
	if deadline.IsZero() || (!p.stop.IsZero() && p.stop.Before(deadline)) {
		deadline = p.stop
	}
	if deadline.Equal(p.armed) {
		return nil
	}
	if err := p.file.SetReadDeadline(deadline); err != nil {
		return err
	}
	p.armed = deadline
	return nil
}
