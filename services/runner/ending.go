package runner

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
)

// ending is a signal that a former worker was about to send when it was killed. Without it a process that ran into its timeout would have
// ended by itself.
type ending struct {
	signal syscall.Signal
	at     time.Time
	fact   *executionv1.TerminationStarted
}

func (p *past) addEnding(e journal.Ending) error {
	p.ending = nil
	if e.Signal == 0 {
		return nil
	}
	fact := &executionv1.TerminationStarted{}
	if err := proto.Unmarshal(e.Payload, fact); err != nil {
		return fmt.Errorf("signal in the journal: %w", err)
	}
	p.ending = &ending{syscall.Signal(e.Signal), e.At, fact}
	return nil
}

// intend writes down that a signal is about to be sent; 0: that it was not, since nobody was there. It does not wait for the disk: the
// signal must not.
func (a *attempt) intend(sig syscall.Signal, at time.Time, fact *executionv1.TerminationStarted) {
	e := journal.Ending{}
	if sig != 0 {
		payload, err := proto.Marshal(fact)
		if err != nil {
			a.log.Error("signal cannot be encoded", "error", err)
			return
		}
		e = journal.Ending{Signal: int(sig), At: at, Payload: payload}
	}
	err := a.journal.Append(journal.Entry{Ending: &e})
	if full(err) && a.runner.reserve.give(false) {
		err = a.journal.Append(journal.Entry{Ending: &e})
	}
	if err != nil {
		a.log.Warn("signal is sent without being written down first", "error", err)
	}
}

// full reports whether there was no room on the disk.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// unsure is the fact about a signal of which nobody knows whether it was sent.
func (e *ending) unsure() *executionv1.TerminationStarted {
	return &executionv1.TerminationStarted{
		Cause: e.fact.GetCause(), RequestedBy: e.fact.GetRequestedBy(),
		Message: oneLine(fmt.Sprintf("%s (the runner's worker ended while it sent %s)", e.fact.GetMessage(), signalName(e.signal))),
	}
}

// tellEnding records what a former worker was about to do to a process that is gone. It reports whether that can have ended the process.
func (a *attempt) tellEnding(endedAt time.Time) bool {
	e := a.past.ending
	if a.past.ending = nil; e == nil || !endedAt.IsZero() && endedAt.Before(e.at) {
		return false
	}
	a.fact(e.at, e.unsure())
	return true
}

// resumeEnding goes on with it: whoever still runs gets the signal again.
func (w *watch) resumeEnding(l limits) {
	e := w.a.past.ending
	if e == nil {
		return
	}
	w.begun = e.fact
	if w.killed = e.signal == syscall.SIGKILL; !w.killed {
		w.graceOver = time.After(l.grace)
	}
	w.signal(e.signal)
}
