package execution

import (
	"slices"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Standing is what is known of the latest attempt, for who has to decide what becomes of it. Chunks need not be folded for it, when
// Heard is told of them.
type Standing struct {
	// Attempt is the latest one, 0 when there is none yet.
	Attempt uint32
	// Prepared, Ran, Ended and Sealed say that there is evidence of a launch spec, of a process, of its end or of why there is
	// none, and of the output's end.
	Prepared, Ran, Ended, Sealed bool
	// Lost says that the runner was lost and is not back.
	Lost bool
	// Next is the end that another attempt follows; unspecified when none does.
	Next executionv1.RetryOn
	// RetryAt is when the next attempt is requested; zero when that was not said.
	RetryAt time.Time
	// StartBy is when the attempt expires that was not started; zero when it never does.
	StartBy time.Time
	// Retry is what was asked for, nil when nothing was.
	Retry *executionv1.RetryPolicy
	// Cancelled says that somebody asked for the end.
	Cancelled bool
}

// Closed says that nothing more is expected of the attempt.
func (s Standing) Closed() bool { return s.Sealed || s.Lost }

// Over says that nothing more is expected of the execution.
func (s Standing) Over() bool {
	return s.Closed() && s.Next == executionv1.RetryOn_RETRY_ON_UNSPECIFIED
}

// Heard tells of a fact of an attempt's runner that is not folded, a chunk of output, for Standing alone.
func (s *State) Heard(attempt uint32, sequence uint64) {
	if s.unfolded == nil {
		s.unfolded = map[uint32]uint64{}
	}
	s.unfolded[attempt] = max(s.unfolded[attempt], sequence)
}

// heard is the last number that was heard of an attempt's runner.
func (s *State) heard(attempt uint32) uint64 {
	return max(s.seen.heard(attempt), s.unfolded[attempt])
}

// Standing works out what becomes of the execution. It changes nothing.
func (s *State) Standing() Standing {
	out := Standing{Retry: s.requested.data.GetRetry(), Cancelled: s.cancelled.set}
	a := s.latest()
	if a != nil {
		out.Attempt = a.number
	}
	for n := range s.unfolded {
		if n > out.Attempt { // Of the latest attempt there is nothing but output.
			out.Attempt, out.Ran, a = n, true, nil
		}
	}
	if a == nil {
		return out
	}
	_, out.Next = s.ending(a)
	out.Prepared, out.Ran = a.prepared.set, a.ran()
	out.Ended = a.exited.set || a.waitFailed.set || a.startFailed.set || a.preparationFailed.set && !a.ran()
	out.Sealed = a.sealed() || a.neverRan()
	out.Lost = a.missed(s.heard(a.number))
	out.RetryAt = timeOf(a.retry.data.GetNotBefore(), time.Time{})
	out.StartBy = timeOf(a.prepared.data.GetStartBy(), time.Time{})
	return out
}

// ending is what became of an attempt, and what of that another attempt follows.
func (s *State) ending(a *attempt) (ending, executionv1.RetryOn) {
	e := a.ending(s.heard(a.number))
	policy := s.requested.data.GetRetry()
	// A preparer refuses a policy that makes no sense; others may have prepared it all the same.
	if policy == nil || events.CheckRetry(policy) != nil || s.cancelled.set || a.number == 0 || a.number > policy.GetRetries() {
		return e, executionv1.RetryOn_RETRY_ON_UNSPECIFIED
	}
	if on := retryOn(e, a.exited.set || a.waitFailed.set); slices.Contains(policy.GetRetryOn(), on) {
		return e, on
	}
	return e, executionv1.RetryOn_RETRY_ON_UNSPECIFIED
}

// retryOn is what an end counts as for a retry policy.
func retryOn(e ending, ran bool) executionv1.RetryOn {
	switch {
	case e.status == StatusLost, e.reason == "wait_failed", e.reason == "runner_shutdown":
		return executionv1.RetryOn_RETRY_ON_LOST
	case e.status == StatusTimeout:
		return executionv1.RetryOn_RETRY_ON_TIMEOUT
	case e.status == StatusFailed && ran:
		return executionv1.RetryOn_RETRY_ON_FAILED
	default:
		return executionv1.RetryOn_RETRY_ON_UNSPECIFIED
	}
}
