package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// newDocument is a file in memory with the bytes, at its beginning. It has no name that others could open.
func newDocument(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the stdin document: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	if _, err = io.Copy(f, bytes.NewReader(data)); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the stdin document: %w", err), f.Close())
	}
	return f, nil
}

// pour moves the rest of a document into a pipe. The kernel moves the document's position by what the pipe took.
func pour(pipe, document *os.File) error {
	from, err := document.SyscallConn()
	if err != nil {
		return err
	}
	to, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int64
		var moveErr error
		err := to.Write(func(out uintptr) bool {
			err := from.Control(func(in uintptr) {
				n, moveErr = unix.Splice(int(in), nil, int(out), nil, 1<<20, unix.SPLICE_F_NONBLOCK)
			})
			if err != nil {
				moveErr = err
			}
			return !errors.Is(moveErr, unix.EAGAIN)
		})
		switch {
		case err != nil: // The watch closed the pipe under it.
			return fmt.Errorf("%w: %w", os.ErrClosed, err)
		case errors.Is(moveErr, unix.EINTR):
		case moveErr != nil:
			return os.NewSyscallError("splice", moveErr)
		case n == 0:
			return nil
		}
	}
}
