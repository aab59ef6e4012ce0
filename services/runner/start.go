package runner

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
)

// errCancelled says that a cancel came before the start.
var errCancelled = errors.New("cancelled before the start")

// limits are the times that bound an attempt.
type limits struct {
	timeout time.Duration // 0: none.
	grace   time.Duration
}

// start starts the process. The directory must be removed in any case.
func (a *attempt) start() (directory, limits, *process.Process, error) {
	select {
	case <-a.cancelled:
		return directory{}, limits{}, nil, fmt.Errorf("%w%s", errCancelled, a.why)
	default:
	}
	bounds, err := a.limits()
	if err != nil {
		return directory{}, limits{}, nil, err
	}
	where, err := makeDirectory(a.runner.work, a.spec.GetDirectory(), a.work.Subject)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return directory{}, limits{}, nil, &process.StartError{
			Reason: executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES, Errno: errno, Message: err.Error(),
		}
	}
	p, err := process.Start(process.Spec{
		Argv: a.spec.GetArgv(), Environment: environment(a.work, a.spec, where.home), Directory: where.path, Stdin: len(a.spec.GetStdin()) > 0,
	})
	return where, bounds, p, err
}

// limits reads the spec's times. No timeout and a timeout of 0 mean none.
func (a *attempt) limits() (limits, error) {
	l := limits{grace: a.runner.config.Grace}
	read := func(name string, d *durationpb.Duration, into *time.Duration) error {
		if d == nil {
			return nil
		}
		if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
			return fmt.Errorf("%s of %ds in the launch spec is no duration", name, d.GetSeconds())
		}
		*into = d.AsDuration()
		return nil
	}
	return l, errors.Join(read("timeout", a.spec.GetTimeout(), &l.timeout), read("grace", a.spec.GetGrace(), &l.grace))
}

// String is the part of a sentence that says who and why.
func (c cancellation) String() string {
	s := ""
	if c.requestedBy != "" {
		s += " by " + c.requestedBy
	}
	if c.reason != "" {
		s += ": " + c.reason
	}
	return s
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
