package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// errCancelled says that a cancel came before the start.
var errCancelled = errors.New("cancelled before the start")

// errExpired says that nobody expects the attempt to be started any more.
var errExpired = errors.New("no runner took it in time")

// askAgain is how long descriptors are waited for before a running process is asked for again.
const askAgain = time.Second

// limits are the times that bound an attempt.
type limits struct {
	timeout time.Duration // 0: none.
	grace   time.Duration
}

// start starts the process, or finds the one that was started before.
func (a *attempt) start(life context.Context) (limits, *supervisor.Process, error) {
	bounds, err := a.limits()
	if err != nil {
		return bounds, nil, err
	}
	before := a.startedBefore()
	if !before {
		select {
		case <-a.cancelled:
			return bounds, nil, fmt.Errorf("%w%s", errCancelled, a.why)
		default:
		}
		if by := a.spec.GetStartBy(); by.IsValid() && time.Now().After(by.AsTime()) {
			return bounds, nil, fmt.Errorf("%w: it was to be started by %s", errExpired, by.AsTime().Format(time.RFC3339))
		}
		if a.secretless != nil {
			return bounds, nil, a.secretless
		}
	}
	var command protocol.Command
	where := a.directory()
	if !before { // What was started is found, whatever has become of its limits and its user since.
		if command, err = a.limited(); err != nil {
			return bounds, nil, err
		}
		if where.owner, err = a.owner(); err != nil {
			return bounds, nil, err
		}
	}
	if err := where.make(); err != nil && !before {
		var errno syscall.Errno
		errors.As(err, &errno)
		return bounds, nil, &process.StartError{
			Reason: executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES, Errno: errno, Message: err.Error(),
		}
	}
	var document *os.File
	if !before { // Else the supervisor has it.
		if document, err = a.document(life); err != nil {
			return bounds, nil, err
		}
		if document != nil {
			defer document.Close()
		}
	}
	command.Argv, command.Environment, command.Directory = a.spec.GetArgv(), environment(a.work, a.spec, where.home), where.path
	p, err := a.ask(life, command, document)
	return bounds, p, err
}

// ask asks the supervisor for the process until it has the pipes too: a process that runs is not given up for want of descriptors, of
// which others give some back.
func (a *attempt) ask(life context.Context, command protocol.Command, document *os.File) (*supervisor.Process, error) {
	for said := false; ; said = true {
		p, err := a.runner.client.Start(a.key, a.folder, command, document)
		if !errors.Is(err, supervisor.ErrNoDescriptors) {
			return p, err
		}
		if !said {
			a.log.WarnContext(life, "process runs unread until descriptors are free", "error", err)
		}
		select {
		case <-time.After(askAgain):
		case <-life.Done():
			return nil, errLeft
		}
	}
}

// directory is where the process works.
func (a *attempt) directory() directory {
	if a.spec.GetDirectory() == "" && (a.spec.GetLimits().GetUser() != "" || a.spec.GetLimits().GetGroup() != "") {
		// Somebody else could not get to one below the data folder, which is the runner's alone, nor to every TMPDIR.
		return directoryOf("/tmp", "", "verbatim-"+folderName(a.work.Subject, a.work.Attempt))
	}
	return directoryOf(a.runner.work, a.spec.GetDirectory(), folderName(a.work.Subject, a.work.Attempt))
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
