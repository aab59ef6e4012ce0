package runner

import (
	"errors"
	"os"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// feed writes the stdin document and closes the pipe, so that the process sees its end. It runs beside the
// readers, so a process that writes before it reads cannot block it for ever. When the process ends, the watch closes
// the pipe under it, which ends a write to a process that never read.
//
// That the process did not take everything is a fact and no error: many a program reads what it needs and ends.
func (a *attempt) feed(stdin *os.File) {
	document := a.spec.GetStdin()
	n, err := stdin.Write(document)
	_ = stdin.Close()
	if n == len(document) {
		return
	}
	cause := "internal error: write ended early"
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EPIPE):
		cause = "broken pipe: the process closed its standard input or ended"
	case errors.Is(err, os.ErrClosed):
		cause = "the process ended before it read all of its standard input"
	case errors.As(err, &errno):
		cause = errno.Error()
	}
	a.fact(time.Now(), &executionv1.StdinWriteFailed{AcceptedBytes: uint64(n), OfferedBytes: uint64(len(document)), Cause: cause})
}
