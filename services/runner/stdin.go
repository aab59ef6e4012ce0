package runner

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/supervisor"
)

// feed writes the stdin document and closes the pipe, so that the process sees its end. It runs beside the
// readers, so a process that writes before it reads cannot block it for ever. When the process ends, the watch closes
// the pipe under it, which ends a write to a process that never read.
//
// The document is a file that the supervisor holds too, and its position is the kernel's: how much the pipe has
// taken is known to whoever opens it next, exactly.
//
// That the process did not take everything is a fact and no error: many a program reads what it needs and ends.
func (a *attempt) feed(p *supervisor.Process) {
	defer p.Document.Close()
	err := pour(p.Stdin, p.Document)
	_ = p.Stdin.Close()
	accepted, seekErr := p.Document.Seek(0, io.SeekCurrent)
	if offered := sizeOf(p.Document); (seekErr != nil || accepted < offered) && !a.past.names["StdinWriteFailed"] {
		a.fact(time.Now(), &executionv1.StdinWriteFailed{AcceptedBytes: uint64(max(accepted, 0)), OfferedBytes: uint64(offered), Cause: stdinCause(err)})
	}
	p.StdinDone()
}

// sizeOf is how much a document holds, which is what is offered.
func sizeOf(document *os.File) int64 {
	info, err := document.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func stdinCause(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EPIPE):
		return "broken pipe: the process closed its standard input or ended"
	case errors.Is(err, os.ErrClosed):
		return "the process ended before it read all of its standard input"
	case errors.As(err, &errno):
		return errno.Error()
	default:
		return "internal error: write ended early"
	}
}
