package spool

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const ioctlReadable = unix.TIOCINQ

// A pipe holds 64 KiB (pipe(7)), and more once it was found full: a process that writes faster than it is read then waits, and wakes us, a quarter as
// often. More than 256 KiB gains nothing, and what is in a pipe is lost with both processes of the runner (decision 0019).
const (
	pipeBytes      = 64 << 10
	grownPipeBytes = 256 << 10
)

// spliceBytes is what one splice takes at most: more than a pipe holds.
const spliceBytes = 1 << 20

// enlarge makes a pipe larger where the user may have that much (fs.pipe-user-pages-soft); otherwise it stays as it is.
func enlarge(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, grownPipeBytes) }

// transfer moves what a pipe holds to a place in a file, without passing through this process. errEmpty: nothing is there. rest is what is out of
// the pipe and not in the file, see copyOnce.
func transfer(in, out int, offset int64) (n int64, rest []byte, err error) {
	for {
		n, err := unix.Splice(in, nil, out, &offset, spliceBytes, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case n > 0:
			return n, nil, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return 0, nil, errEmpty
		case errors.Is(err, unix.EINVAL):
			return copyOnce(in, out, offset) // The input is no pipe, or the file system cannot do it.
		case err != nil:
			return 0, nil, os.NewSyscallError("splice", err)
		default:
			return 0, nil, io.EOF
		}
	}
}

// punch gives the disk back what lies in a range. Where that cannot be done the file stays large until it is removed.
func punch(f *os.File, from, to int64) {
	if fd, err := number(f); err == nil {
		_ = syscall.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	}
}
