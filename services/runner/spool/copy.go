package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

// copyOnce moves bytes by read(2) and pwrite(2), where there is no splice(2). What was read and not written, because of the error, is rest. It
// is lost when this process is killed before it is.
func copyOnce(in, out int, offset int64) (n int64, rest []byte, err error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := syscall.Read(in, *buffer)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, nil, errEmpty
		case err != nil:
			return 0, nil, os.NewSyscallError("read", err)
		case n == 0:
			return 0, nil, io.EOF
		}
		written, err := writeAll(out, (*buffer)[:n], offset)
		return written, bytes.Clone((*buffer)[written:n]), err
	}
}

// writeAll writes as much as it can.
func writeAll(out int, data []byte, offset int64) (n int64, err error) {
	for n < int64(len(data)) {
		k, err := syscall.Pwrite(out, data[n:], offset+n)
		n += int64(max(k, 0))
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return n, os.NewSyscallError("write", err)
		}
	}
	return n, nil
}
