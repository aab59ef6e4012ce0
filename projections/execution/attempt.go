package execution

import (
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

// The streams of an attempt, by index.
const (
	stdout = iota
	stderr
	streamCount
)

var streamNames = [streamCount]string{
	events.StreamName(executionv1.Stream_STREAM_STDOUT), events.StreamName(executionv1.Stream_STREAM_STDERR),
}

func streamIndex(s executionv1.Stream) int {
	switch s {
	case executionv1.Stream_STREAM_STDOUT:
		return stdout
	case executionv1.Stream_STREAM_STDERR:
		return stderr
	default:
		return -1
	}
}

// attempt is what is known of one try.
type attempt struct {
	number uint32

	prepared          slot[*executionv1.Prepared]
	preparationFailed slot[*executionv1.PreparationFailed]
	started           slot[*executionv1.ProcessStarted]
	startFailed       slot[*executionv1.StartFailed]
	stdinFailed       slot[*executionv1.StdinWriteFailed]
	exited            slot[*executionv1.ProcessExited]
	waitFailed        slot[*executionv1.WaitFailed]
	recorded          slot[*executionv1.OutputRecorded]
	lost              slot[*executionv1.RunnerLost]
	returned          slot[*executionv1.RunnerReturned]
	retry             slot[*executionv1.RetryScheduled]
	seals             log[*executionv1.OutputSealed]
	readFailures      log[*executionv1.OutputReadFailed]
	terminations      log[*executionv1.TerminationStarted]

	streams [streamCount]stream
}

// fold joins a fact and says whether that changed anything. kept is false when not everything of it is.
func (a *attempt) fold(data proto.Message, from origin, at time.Time, waiting *int) (changed, kept bool) {
	kept = true
	switch d := data.(type) {
	case *executionv1.Prepared:
		changed = a.prepared.join(fact[*executionv1.Prepared]{from, at, trimPrepared(d)})
	case *executionv1.PreparationFailed:
		changed = a.preparationFailed.join(fact[*executionv1.PreparationFailed]{from, at, &executionv1.PreparationFailed{Reason: d.GetReason(), Message: clip(d.GetMessage())}})
	case *executionv1.ProcessStarted:
		changed = a.started.join(fact[*executionv1.ProcessStarted]{from, at, d})
	case *executionv1.StartFailed:
		t := &executionv1.StartFailed{Reason: d.GetReason(), Message: clip(d.GetMessage()), Errno: d.GetErrno(), Host: d.GetHost(), Runner: d.GetRunner()}
		changed = a.startFailed.join(fact[*executionv1.StartFailed]{from, at, t})
	case *executionv1.StdinWriteFailed:
		t := &executionv1.StdinWriteFailed{AcceptedBytes: d.GetAcceptedBytes(), OfferedBytes: d.GetOfferedBytes(), Cause: clip(d.GetCause())}
		changed = a.stdinFailed.join(fact[*executionv1.StdinWriteFailed]{from, at, t})
	case *executionv1.OutputReadFailed:
		t := &executionv1.OutputReadFailed{Stream: d.GetStream(), Offset: d.GetOffset(), Cause: clip(d.GetCause())}
		changed = a.readFailures.join(fact[*executionv1.OutputReadFailed]{from, at, t})
	case *executionv1.TerminationStarted:
		t := &executionv1.TerminationStarted{Cause: d.GetCause(), RequestedBy: clip(d.GetRequestedBy()), Message: clip(d.GetMessage()), Signals: d.GetSignals()[:min(len(d.GetSignals()), maxLog)]}
		changed = a.terminations.join(fact[*executionv1.TerminationStarted]{from, at, t})
	case *executionv1.ProcessExited:
		changed = a.exited.join(fact[*executionv1.ProcessExited]{from, at, d})
	case *executionv1.WaitFailed:
		t := &executionv1.WaitFailed{Cause: clip(d.GetCause()), Errno: d.GetErrno(), FailedAt: d.GetFailedAt()}
		changed = a.waitFailed.join(fact[*executionv1.WaitFailed]{from, at, t})
	case *executionv1.OutputSealed:
		changed, kept = a.seals.joinUpTo(fact[*executionv1.OutputSealed]{from, at, d}, maxSeals)
		a.seal(waiting)
	case *executionv1.OutputRecorded:
		changed = a.recorded.joinLatest(fact[*executionv1.OutputRecorded]{from, at, trimRecorded(d)})
	case *executionv1.RunnerLost:
		changed = a.lost.joinLatest(fact[*executionv1.RunnerLost]{from, at, d})
	case *executionv1.RunnerReturned:
		changed = a.returned.joinLatest(fact[*executionv1.RunnerReturned]{from, at, d})
	case *executionv1.RetryScheduled:
		changed = a.retry.joinLatest(fact[*executionv1.RetryScheduled]{from, at, d})
	}
	return changed, kept
}

// seal tells the streams which ranges will never come, so that their digests can go on behind them.
func (a *attempt) seal(waiting *int) {
	for i := range a.streams {
		if s := a.sealOf(i); s != nil {
			a.streams[i].digest.pass(interval.Of(append(ranges(s.GetElided()), ranges(s.GetLost())...)...), waiting)
		}
	}
}

// ran says whether there is evidence that a process existed.
func (a *attempt) ran() bool {
	return a.started.set || a.exited.set || a.waitFailed.set || a.stdinFailed.set ||
		len(a.terminations.facts) > 0 || len(a.readFailures.facts) > 0 ||
		a.streams[stdout].end > 0 || a.streams[stderr].end > 0
}

// closed says whether the stream's total is known: sealed, or there never was a process.
func (a *attempt) closed(index int) bool {
	return a.sealOf(index) != nil || a.neverRan()
}

// neverRan says that the attempt ended without a process, and without a seal that says so: nobody prepared it, or nobody took it.
func (a *attempt) neverRan() bool {
	expired := a.startFailed.data.GetReason() == executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED
	return (a.preparationFailed.set || expired) && !a.ran() && !a.sealed()
}

// missed says that the runner was lost and is not back, given the last number that was heard of it: neither did it say more than what was
// known when it was lost, nor was it seen to have the attempt again.
func (a *attempt) missed(heard uint64) bool {
	if !a.lost.set || a.returned.set && a.returned.sequence > a.lost.sequence {
		return false
	}
	last := a.lost.data.GetLastSequence()
	unknown := last == 0 && a.lost.data.GetCause() == executionv1.LossCause_LOSS_CAUSE_UNSPECIFIED
	return unknown || heard <= last
}

// trimPrepared keeps what the row shows. Environment and stdin stay in the log.
func trimPrepared(d *executionv1.Prepared) *executionv1.Prepared {
	return &executionv1.Prepared{
		Argv: d.GetArgv(), Directory: d.GetDirectory(), Timeout: d.GetTimeout(), Action: clip(d.GetAction()), StartBy: d.GetStartBy(),
		Labels: d.GetLabels(), RequestedAt: d.GetRequestedAt(), RequestedBy: clip(d.GetRequestedBy()),
	}
}

func ranges(rs []*executionv1.ByteRange) []interval.Range {
	out := make([]interval.Range, 0, len(rs))
	for _, r := range rs {
		out = append(out, interval.Range{Start: r.GetStart(), End: r.GetEnd()})
	}
	return out
}
