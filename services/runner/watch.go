package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/supervisor"
)

const (
	byTimeout  = executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT
	byCancel   = executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL
	byShutdown = executionv1.TerminationCause_TERMINATION_CAUSE_RUNNER_SHUTDOWN
)

// lookEvery is how often the rest of a group is looked at, when a leader ended after TERM and others may not have.
const lookEvery = 100 * time.Millisecond

// hurriedDrain bounds the drain once the runner has to be gone.
const hurriedDrain = 500 * time.Millisecond

// watch follows a process from its start until it ended, its output is drained, and, when it was being
// ended, nothing of its group is left. All of it happens in the goroutine of run; only the waiting has one of its own.
type watch struct {
	a       *attempt
	process *supervisor.Process
	grace   time.Duration

	stopWait  context.CancelFunc
	ended     chan end // nil once it was received.
	drained   <-chan struct{}
	timeout   <-chan time.Time
	cancelled <-chan struct{}
	shutdown  <-chan struct{}
	hurry     <-chan struct{}
	graceOver <-chan time.Time
	look      <-chan time.Time

	limit   time.Duration
	begun   *executionv1.TerminationStarted // What every such fact of this attempt says; nil before the first.
	killed  bool
	quiet   bool // The leader has ended and nobody else is in the group.
	hurried bool
	told    bool // How it ended is recorded, once close has returned.

	facts   chan func()
	telling sync.WaitGroup
}

type end struct {
	exit process.Exit
	err  error
}

func newWatch(a *attempt, p *supervisor.Process, l limits, drained <-chan struct{}) *watch {
	w := &watch{
		a: a, process: p, grace: l.grace, limit: l.timeout,
		ended: make(chan end, 1), drained: drained,
		cancelled: a.cancelled, shutdown: a.runner.shutdown, hurry: a.runner.hurry,
		begun: a.past.begun, killed: a.past.killed,
		facts: make(chan func(), 16), // Two signals and an end at most.
	}
	w.telling.Go(func() {
		for tell := range w.facts {
			_ = a.guard("record a fact", tell)
		}
	})
	if l.timeout > 0 {
		w.timeout = time.After(l.timeout - time.Since(p.StartedAt))
	}
	if w.begun != nil && !w.killed { // A former worker sent TERM.
		w.graceOver = time.After(l.grace - time.Since(a.past.begunAt))
	}
	var waiting context.Context
	waiting, w.stopWait = context.WithCancel(context.Background())
	ended := w.ended
	if exit, err, known := p.Ended(); known {
		if e := a.past.ending; a.tellEnding(exit.EndedAt) {
			w.begun = e.fact
		}
		ended <- end{exit, err} // Nothing else that is due by now has ended it.
		return w
	}
	w.resumeEnding(l)
	go func() {
		var e end
		if err := a.guard("wait", func() { e.exit, e.err = p.Wait(waiting) }); err != nil {
			e.err = err
		}
		ended <- e
	}()
	return w
}

// close ends what newWatch began, when the facts are recorded.
func (w *watch) close() {
	w.stopWait()
	close(w.facts)
	w.telling.Wait()
}

// tell records facts one after the other, without waiting for it: that may take as long as a disk is full, and a KILL must not.
func (w *watch) tell(fact func()) { w.facts <- fact }

func (w *watch) run(life context.Context) {
	for !w.over() {
		select {
		case e := <-w.ended:
			w.onEnd(e)
		case <-w.drained:
			w.drained = nil
		case <-w.timeout:
			w.timeout = nil
			w.terminate(byTimeout, "", fmt.Sprintf("ran into its timeout of %s", w.limit))
		case <-w.cancelled:
			w.cancelled = nil
			w.terminate(byCancel, w.a.why.requestedBy, w.a.why.reason)
		case <-w.shutdown:
			w.shutdown = nil
			w.terminate(byShutdown, "", "the runner is stopping")
		case <-w.graceOver:
			w.kill()
		case <-w.look:
			w.lookAround()
		case <-w.hurry:
			w.hurry, w.hurried = nil, true
			w.terminate(byShutdown, "", "the runner is stopping")
			w.kill()
			w.startDrain()
		case <-life.Done():
			w.abandon()
			return
		}
	}
}

// over says that nothing more is to be waited for.
func (w *watch) over() bool { return w.ended == nil && w.drained == nil && w.settled() }

// settled says that no signal is to come any more.
func (w *watch) settled() bool { return w.begun == nil || w.killed || w.quiet }

// onEnd records how the process ended. From here on nothing begins to end it, but what has begun goes on for
// the rest of the group.
func (w *watch) onEnd(e end) {
	w.ended, w.timeout, w.cancelled, w.shutdown = nil, nil, nil, nil
	if w.process.Stdin != nil {
		_ = w.process.Stdin.Close()
	}
	known := w.a.past.names["ProcessExited"] || w.a.past.names["WaitFailed"]
	w.told = true
	if e.err != nil {
		w.a.outcome = "wait_failed"
		if !known {
			w.tell(func() { w.a.waitFailed(e.err) })
		}
	} else {
		w.a.outcome = w.outcome(e.exit)
		if !known {
			w.tell(func() { w.a.fact(e.exit.EndedAt, exited(e.exit)) })
		}
	}
	w.lookAround()
}

// lookAround finds out whether the rest of the group needs the KILL, after the leader ended.
func (w *watch) lookAround() {
	if !w.settled() {
		others, err := w.process.GroupHasOthers()
		if w.quiet = err == nil && !others; !w.quiet {
			w.look = time.After(lookEvery)
		}
	}
	w.startDrain()
}

// startDrain bounds the reading once the process has ended and no signal is to come.
func (w *watch) startDrain() {
	if w.ended == nil && w.settled() {
		drain := w.a.runner.config.DrainTime
		if w.hurried {
			drain = min(drain, hurriedDrain)
		}
		w.a.spool.Stop(time.Now().Add(drain))
	}
}

// terminate sends TERM and starts the grace, unless an end came or was begun before.
func (w *watch) terminate(cause executionv1.TerminationCause, requestedBy, message string) {
	select {
	case e := <-w.ended: // Both were ready: it ended by itself.
		w.onEnd(e)
	default:
	}
	if w.ended == nil || w.begun != nil {
		return
	}
	w.begun = &executionv1.TerminationStarted{Cause: cause, RequestedBy: requestedBy, Message: message}
	w.signal(unix.SIGTERM)
	w.graceOver = time.After(w.grace)
}

// kill sends KILL once, when an end was begun.
func (w *watch) kill() {
	w.graceOver, w.look = nil, nil
	if w.settled() {
		return
	}
	w.killed = true
	w.signal(unix.SIGKILL)
	w.startDrain()
}

// signal signals the group and records it.
func (w *watch) signal(sig syscall.Signal) {
	at := time.Now()
	fact := &executionv1.TerminationStarted{Cause: w.begun.GetCause(), RequestedBy: w.begun.GetRequestedBy(), Message: w.begun.GetMessage()}
	w.a.intend(sig, at, fact)
	switch err := w.process.SignalGroup(sig); {
	case err == nil:
		fact.Signals = []*executionv1.SentSignal{{Signal: signalOf(sig), SentAt: timestamp(at)}}
		w.a.log.Info("signal sent", "signal", signalName(sig), "cause", w.begun.GetCause().String())
	case errors.Is(err, os.ErrProcessDone): // Somebody else reaped it, and Wait says so in a moment.
		if w.a.past.ending == nil {
			w.a.intend(0, at, nil)
			return
		}
		fact = w.a.past.ending.unsure()
	default:
		fact.Message = oneLine(fmt.Sprintf("%s (%s could not be sent: %v)", fact.GetMessage(), signalName(sig), err))
		w.a.log.Warn("signal cannot be sent", "signal", signalName(sig), "error", err)
	}
	w.a.past.ending = nil
	w.tell(func() { w.a.fact(at, fact) })
}

// abandon is the end of the runner's patience: kill, and read only what is there.
func (w *watch) abandon() {
	if w.ended != nil {
		w.a.outcome = "abandoned"
	}
	w.killNow(w.ended)
	w.ended = nil
	w.a.spool.Stop(time.Now())
}

// giveUp cleans up after a panic in run: nobody watches the process any more, so it must not go on.
func (w *watch) giveUp(cause error) {
	ended := w.ended
	if ended != nil {
		w.ended = nil
		w.a.outcome, w.told = "broken", true
		w.tell(func() { w.a.waitFailed(cause) })
	}
	w.killNow(ended)
	w.a.spool.Stop(time.Now().Add(hurriedDrain))
}

// killNow kills the group and gives the leader a moment to end, so that it can be reaped.
func (w *watch) killNow(ended <-chan end) {
	_ = w.process.SignalGroup(unix.SIGKILL)
	if w.process.Stdin != nil {
		_ = w.process.Stdin.Close()
	}
	if ended != nil {
		select {
		case <-ended:
		case <-time.After(hurriedDrain):
		}
	}
}

func (a *attempt) waitFailed(err error) {
	var errno syscall.Errno
	errors.As(err, &errno)
	now := time.Now()
	a.log.Error("exit status cannot be had", "error", err)
	a.fact(now, &executionv1.WaitFailed{Cause: oneLine(err.Error()), Errno: int32(errno), FailedAt: timestamp(now)})
}

func (w *watch) outcome(e process.Exit) string {
	switch {
	case w.begun.GetCause() == byTimeout:
		return "timeout"
	case w.begun.GetCause() == byCancel:
		return "cancelled"
	case w.begun.GetCause() == byShutdown:
		return "runner_shutdown"
	case e.Signal != 0:
		return "signal"
	case e.Code != 0:
		return "failed"
	default:
		return "succeeded"
	}
}
