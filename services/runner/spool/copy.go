package spool

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

// copyOnce moves bytes by read(2) and pwrite(2), where there is no splice(2). What was read and not written
// is lost when this process is killed in between.
func copyOnce(in, out int, offset int64) (int64, error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := syscall.Read(in, *buffer)
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
		return writeAll(out, (*buffer)[:n], offset)
	}
}

// writeAll writes what is already out of the pipe, so it waits itself while the disk is full.
func writeAll(out int, data []byte, offset int64) (n int64, err error) {
	for n < int64(len(data)) {
		k, err := syscall.Pwrite(out, data[n:], offset+n)
		switch {
		case isFull(err):
			<-time.After(fullWait)
		case err != nil && !errors.Is(err, syscall.EINTR):
			return n, os.NewSyscallError("write", err)
		}
		n += int64(max(k, 0))
	}
	return n, nil
}
