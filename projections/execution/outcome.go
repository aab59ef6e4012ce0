package execution

import (
	"fmt"
	"strings"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// ending is what became of an attempt.
type ending struct {
	status    string
	succeeded *bool
	reason    string
}

var no = false

// outcome fills in status, reason, exit and error. What the process did comes first; then that nobody could
// learn it; then that it never started; then that its runner fell silent. next is what another attempt follows.
func (a *attempt) outcome(r *Row, e ending, next executionv1.RetryOn) {
	r.Status, r.Succeeded, r.Reason = e.status, e.succeeded, text(e.reason)
	if next != executionv1.RetryOn_RETRY_ON_UNSPECIFIED {
		r.Status, r.Succeeded = StatusRetrying, nil
		r.RetryAt = when(timeOf(a.retry.data.GetNotBefore(), time.Time{}))
	}
	if a.exited.set {
		switch st := a.exited.data.GetStatus().(type) {
		case *executionv1.ProcessExited_ExitCode:
			r.ExitCode = ptr(st.ExitCode)
		case *executionv1.ProcessExited_Signal:
			r.Signal = ptr(signalName(st.Signal))
		}
	}
	if e.reason == "" {
		return
	}
	message, source := a.errorText(r)
	r.Error, r.ErrorSource = ptr(clip(message)), &source
}

// ending takes the last number that was heard of the runner.
func (a *attempt) ending(heard uint64) ending {
	switch {
	case a.exited.set || a.waitFailed.set:
		return a.ended()
	case a.startFailed.set:
		if a.startFailed.data.GetReason() == executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED {
			return ending{StatusCancelled, &no, "cancel"}
		}
		return ending{StatusFailed, &no, enumWord(a.startFailed.data.GetReason().String(), "START_FAILURE_REASON_", "start_failed")}
	case a.preparationFailed.set && !a.ran():
		return ending{StatusFailed, &no, enumWord(a.preparationFailed.data.GetReason().String(), "PREPARATION_FAILURE_REASON_", "preparation_failed")}
	case a.missed(heard):
		return ending{StatusLost, nil, "runner_lost"}
	case a.ran() || a.sealed():
		return ending{status: StatusRunning}
	case a.prepared.set:
		return ending{status: StatusPrepared}
	default:
		return ending{status: StatusRequested}
	}
}

// ended is the ending of a process that is known to have ended.
func (a *attempt) ended() ending {
	switch a.terminationCause() {
	case executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT:
		return ending{StatusTimeout, &no, "timeout"}
	case executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL:
		return ending{StatusCancelled, &no, "cancel"}
	case executionv1.TerminationCause_TERMINATION_CAUSE_RUNNER_SHUTDOWN:
		return ending{StatusFailed, &no, "runner_shutdown"}
	}
	if !a.exited.set {
		return ending{StatusFailed, &no, "wait_failed"}
	}
	switch st := a.exited.data.GetStatus().(type) {
	case *executionv1.ProcessExited_ExitCode:
		if st.ExitCode == 0 {
			return ending{StatusSucceeded, ptr(true), ""}
		}
		return ending{StatusFailed, &no, "exit_code"}
	case *executionv1.ProcessExited_Signal:
		return ending{StatusFailed, &no, "signal"}
	default:
		return ending{StatusFailed, &no, "unknown_status"}
	}
}

// terminationCause is the cause of the first termination that has one.
func (a *attempt) terminationCause() executionv1.TerminationCause {
	for _, f := range a.terminations.facts {
		if c := f.data.GetCause(); c != executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED {
			return c
		}
	}
	return executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED
}

// errorText follows the precedence of design section 5: wait, stdin, the process's own stderr, the exit.
func (a *attempt) errorText(r *Row) (message, source string) {
	if !a.exited.set && !a.waitFailed.set {
		return a.notRunText()
	}
	if !a.exited.set {
		return "wait: " + a.waitFailed.data.GetCause(), "wait"
	}
	if a.stdinFailed.set {
		d := a.stdinFailed.data
		return fmt.Sprintf("stdin: %s, %d of %d bytes accepted", d.GetCause(), d.GetAcceptedBytes(), d.GetOfferedBytes()), "stdin"
	}
	s := &a.streams[stderr]
	if said := s.lastWords(max(s.end, a.sealOf(stderr).GetCapturedBytes())); said != "" {
		return said, "stderr"
	}
	message, source = "ended with an unknown status", "exit"
	switch {
	case r.ExitCode != nil:
		message = fmt.Sprintf("exited with code %d", *r.ExitCode)
	case r.Signal != nil:
		message, source = "killed by signal "+*r.Signal, "signal"
		if a.exited.data.GetOutOfMemory() != nil {
			message += ", out of memory"
		}
	}
	switch *r.Reason {
	case "timeout":
		return "timed out, " + message, "timeout"
	case "cancel":
		return "cancelled, " + message, source
	case "runner_shutdown":
		return "runner shut down, " + message, source
	}
	return message, source
}

// notRunText is for an attempt without a known end of a process.
func (a *attempt) notRunText() (message, source string) {
	switch {
	case a.startFailed.set:
		return first(a.startFailed.data.GetMessage(), "the process could not be started"), "start"
	case a.preparationFailed.set && !a.ran():
		return first(a.preparationFailed.data.GetMessage(), "the execution could not be prepared"), "prepare"
	}
	d := a.lost.data
	since := ""
	if t := timeOf(d.GetSilentSince(), a.lost.at); !t.IsZero() {
		since = " since " + t.Format(time.RFC3339)
	}
	runner := "runner " + first(d.GetRunner(), "(unknown)")
	if d.GetCause() == executionv1.LossCause_LOSS_CAUSE_UNHEARD {
		return runner + " claimed it and said nothing since", "runner"
	}
	return runner + " silent" + since, "runner"
}

func first(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// enumWord is the snake_case word of an enum value; otherwise when it has none.
func enumWord(name, prefix, otherwise string) string {
	word, ok := strings.CutPrefix(name, prefix)
	if !ok || word == "UNSPECIFIED" {
		return otherwise
	}
	return strings.ToLower(word)
}

func (a *attempt) termination() *Termination {
	if len(a.terminations.facts) == 0 {
		return nil
	}
	t := &Termination{Signals: []SentSignal{}}
	var cause executionv1.TerminationCause
	for _, f := range a.terminations.facts {
		d := f.data
		if c := d.GetCause(); cause == 0 && c != 0 {
			cause = c
			t.Cause = ptr(enumWord(c.String(), "TERMINATION_CAUSE_", "unknown"))
		}
		t.RequestedBy = or(t.RequestedBy, text(d.GetRequestedBy()))
		t.Message = or(t.Message, text(d.GetMessage()))
		if at := earliest(value(t.StartedAt), f.at); !at.IsZero() {
			t.StartedAt = &at
		}
		for _, g := range d.GetSignals() {
			t.Signals = append(t.Signals, SentSignal{signalName(g.GetSignal()), when(timeOf(g.GetSentAt(), time.Time{}))})
		}
	}
	return t
}

func value(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func readFailure(d *executionv1.OutputReadFailed) string {
	return fmt.Sprintf("%s at byte %d: %s", streamNames[streamIndex(d.GetStream())], d.GetOffset(), d.GetCause())
}
