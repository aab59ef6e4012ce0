package runner

import (
	"context"
	"errors"
	"strconv"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/supervisor"
)

const byRunnerKilled = executionv1.TerminationCause_TERMINATION_CAUSE_RUNNER_KILLED

// endOrphan ends what is left of a process of which supervisor and worker were killed together. Nobody has its pipes any more: it would
// run on, unseen, until it writes and the kernel ends it (SIGPIPE), and what it did until then would be in no fact. It gets TERM, the
// grace and KILL, as for every other end, with its group; each signal is a fact.
//
// A process that had ended before its supervisor left an exit record; what it left behind is its own affair.
func (a *attempt) endOrphan(life context.Context, gone *supervisor.GoneError) {
	if gone.Exit != nil {
		return
	}
	o := process.Orphan{Mark: "VERBATIM_EXECUTION_ID=" + a.work.Subject, Attempt: "VERBATIM_ATTEMPT=" + strconv.FormatUint(uint64(a.work.Attempt), 10)}
	if r := gone.Record; r != nil {
		if r.Boot != process.BootID() {
			return // The machine has started anew since.
		}
		o.PID, o.Ticks = r.PID, r.Ticks
	}
	grace := a.runner.config.Grace
	if l, err := a.limits(); err == nil {
		grace = l.grace
	}
	if !a.signalOrphan(o, syscall.SIGTERM) {
		return
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	over := time.After(grace)
	for o.Lives() {
		select {
		case <-look.C:
		case <-over:
			a.signalOrphan(o, syscall.SIGKILL)
			return
		case <-a.runner.hurry:
			a.signalOrphan(o, syscall.SIGKILL)
			return
		case <-life.Done():
			return
		}
	}
}

// signalOrphan reports whether there was somebody to signal.
func (a *attempt) signalOrphan(o process.Orphan, sig syscall.Signal) bool {
	at := time.Now()
	switch err := o.Signal(sig); {
	case errors.Is(err, syscall.ESRCH):
		return false
	case err != nil:
		a.log.Warn("process that its runner left behind cannot be ended", "pid", o.PID, "signal", signalName(sig), "error", err)
		return false
	}
	a.log.Warn("process that its runner left behind is ended", "pid", o.PID, "signal", signalName(sig))
	a.fact(at, &executionv1.TerminationStarted{
		Cause: byRunnerKilled, Message: "the runner was killed together with its supervisor, and nobody could read the output any more",
		Signals: []*executionv1.SentSignal{{Signal: signalOf(sig), SentAt: timestamp(at)}},
	})
	return true
}
