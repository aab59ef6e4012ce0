package spool

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// discardStep is how much is thrown away between two calls of Discard's function.
const discardStep = 1 << 20

// Discard reads a stream on that could not be kept, to its end or to the time that Stop gave, and only counts: the
// process must not wait for ever because a disk is broken, and how much is lost must be known. It calls so with the count
// again and again, and closes the pipe.
func (s *Spool) Discard(id executionv1.Stream, so func(n uint64)) (n uint64, held bool) {
	st := s.stream(id)
	if st.pipe == nil {
		return 0, false
	}
	defer st.pipe.file.Close()
	if st.pipe.raw == nil || st.pipe.arm(time.Time{}) != nil {
		return 0, false
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	n = uint64(len(st.pipe.rest))
	said := uint64(0)
	take := func() error {
		k, err := readOnce(st.pipe.file, *buffer)
		n += uint64(k)
		return err
	}
	for {
		err := st.pipe.wait(take)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && st.pipe.stopped():
			for left := st.pipe.waiting(); err != nil && left > 0; left -= len(*buffer) {
				err = st.pipe.now(take)
			}
			return n, !errors.Is(st.pipe.now(take), io.EOF)
		case err != nil:
			return n, false
		}
		if n-said >= discardStep {
			said = n
			so(n)
		}
	}
}

// readOnce reads what a pipe holds; errEmpty when that is nothing.
func readOnce(f *os.File, buffer []byte) (int, error) {
	fd, err := number(f)
	if err != nil {
		return 0, err
	}
	for {
		n, err := syscall.Read(fd, buffer)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, errEmpty
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
