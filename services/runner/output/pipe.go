package output

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readBytes is what one read takes at most: the default capacity of a pipe on Linux (pipe(7)).
const readBytes = 64 << 10

var buffers = sync.Pool{New: func() any {
	b := make([]byte, readBytes)
	return &b
}}

// errEmpty says that there is nothing to read now.
var errEmpty = errors.New("the pipe is empty")

// pipe reads without waiting in a thread and without a buffer while there is nothing. Its deadline is the
// earlier of the flush time, which its reader sets, and the stop time, which anybody sets.
type pipe struct {
	file *os.File
	raw  syscall.RawConn

	mu          sync.Mutex
	flush, stop time.Time
	armed       time.Time
}

func (p *pipe) open() (err error) {
	p.raw, err = p.file.SyscallConn()
	return err
}

// read waits until there are bytes, the end (io.EOF), or the deadline, and gives the bytes to take, which must not
// keep them. The lock is held from before the bytes are read until they are taken: then nobody's bytes
// can be read earlier and be taken later.
func (p *pipe) read(lock sync.Locker, take func([]byte)) (n int, err error) {
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = readOnce(fd, lock, take)
		return !errors.Is(err, errEmpty)
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// readNow is read without waiting: errEmpty when there is nothing. It leaves the pipe without a deadline.
func (p *pipe) readNow(lock sync.Locker, take func([]byte)) (n int, err error) {
	if err := p.file.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = readOnce(fd, lock, take)
		return true
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

func readOnce(fd uintptr, lock sync.Locker, take func([]byte)) (int, error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	lock.Lock()
	defer lock.Unlock()
	for {
		n, err := syscall.Read(int(fd), *buffer)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, errEmpty
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		take((*buffer)[:n])
		return n, nil
	}
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
func (p *pipe) arm(flush time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flush = flush
	p.set()
}

func (p *pipe) stopAt(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop.IsZero() || at.Before(p.stop) {
		p.stop = at
		p.set()
	}
}

func (p *pipe) stopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.stop.IsZero() && !time.Now().Before(p.stop)
}

func (p *pipe) set() {
	deadline := p.flush
	if deadline.IsZero() || (!p.stop.IsZero() && p.stop.Before(deadline)) {
		deadline = p.stop
	}
	if deadline.Equal(p.armed) {
		return
	}
	// An error means that the pipe is closed or has no poller; then the next read says so or waits for its end.
	if p.file.SetReadDeadline(deadline) == nil {
		p.armed = deadline
	}
}
