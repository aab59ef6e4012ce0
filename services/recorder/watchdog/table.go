package watchdog

import (
	"strings"
	"time"

	"github.com/google/uuid"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// stage is how far the latest attempt of an execution is.
type stage uint8

const (
	requested stage = iota
	prepared        // deadline: when it expires
	claimed         // A runner took it, since listed, and said nothing yet.
	running
	exited  // deadline: when it is to be sealed
	ended   // Whether another attempt follows is to be decided.
	waiting // deadline: when the next attempt is requested
	lost
	idle // Nothing is done about it: an outside producer's, or one that was closed without a seal.
)

// entry is an open execution. There may be a million of them.
type entry struct {
	attempt   uint32
	partition uint16
	stage     stage
	// retries says that the execution may have a retry policy.
	retries bool
	// back says that a lost runner has the attempt again.
	back   bool
	runner *runner
	// listed is when the runner was last known to have the attempt, in the time since the watchdog was made. Before somebody has
	// it: since when it is known to be prepared or claimed.
	listed time.Duration
	// preparedAt is when it was prepared, by the broker's clock, in milliseconds since 1970; 0 when that is not known.
	preparedAt int64
	// work is where it lies in the queue of work, as the offset after it; 0 when that is not known, notQueued when it was not found.
	work int64
	// deadline is in milliseconds since 1970; 0 is none.
	deadline int64
}

const runnerSource = "/verbatim/runner/"

// runnerOf is the id of the runner that a source names, or empty.
func runnerOf(source string) string {
	id, _ := strings.CutPrefix(source, runnerSource)
	if len(id) == len(source) {
		return ""
	}
	return id
}

// Observe takes facts that were archived, in any order and as often as they come. It is safe for concurrent use.
func (w *Watchdog) Observe(facts []clickhouse.ArchivedEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.elapsed()
	for i := range facts {
		w.observe(&facts[i], now)
	}
}

func (w *Watchdog) observe(f *clickhouse.ArchivedEvent, now time.Duration) {
	e := &f.Event
	key, err := uuid.Parse(e.Subject)
	if err != nil {
		return
	}
	id := runnerOf(e.Source)
	o, known := w.open[key]
	if !known {
		if id == "" && e.Type != events.TypeExecutionRequested && e.Type != events.TypePrepared {
			return // An outside producer closes what it began.
		}
		o = entry{partition: uint16(f.Partition)}
	}
	switch {
	case e.Attempt > o.attempt:
		o = entry{attempt: e.Attempt, partition: o.partition, retries: o.retries, stage: requested}
	case e.Attempt < o.attempt && e.Attempt > 0:
		return
	}
	if id != "" {
		o.runner, o.listed = w.heard(id, now), now
		if o.stage < running || o.stage == idle || o.stage == lost {
			o.stage = running
		}
	}
	if !w.advance(&o, f) {
		delete(w.open, key)
		return
	}
	w.open[key] = o
}

// advance takes in what a fact says and reports whether the execution is still open.
func (w *Watchdog) advance(o *entry, f *clickhouse.ArchivedEvent) bool {
	switch d := f.Event.Data.(type) {
	case *executionv1.ExecutionRequested:
		o.retries = o.retries || d.GetRetry().GetRetries() > 0
		if o.attempt == 0 && o.stage == requested && o.deadline == 0 {
			o.deadline = f.ReceivedAt.Add(w.c.PrepareWithin + w.c.Margin).UnixMilli()
		}
	case *executionv1.Prepared:
		if o.stage < prepared {
			o.stage, o.deadline = prepared, 0
			o.listed, o.preparedAt, o.work = w.elapsed(), f.ReceivedAt.UnixMilli(), 0
			if by := d.GetStartBy(); by.IsValid() {
				o.deadline = by.AsTime().Add(w.c.Margin).UnixMilli()
			}
		}
	case *executionv1.ProcessExited, *executionv1.WaitFailed:
		if o.stage < exited {
			o.stage, o.deadline = exited, f.ReceivedAt.Add(w.c.SealWithin).UnixMilli()
		}
	case *executionv1.StartFailed:
		if runnerOf(f.Event.Source) == "" {
			return w.end(o) // Expired: no seal comes.
		}
		o.stage, o.deadline = exited, f.ReceivedAt.Add(w.c.SealWithin).UnixMilli()
	case *executionv1.OutputSealed:
		return w.end(o)
	case *executionv1.PreparationFailed:
		return false
	case *executionv1.RunnerLost:
		if d.GetCause() == executionv1.LossCause_LOSS_CAUSE_NOT_SEALED {
			return w.end(o)
		}
		o.stage, o.back = lost, false
		if o.retries {
			o.stage = ended
		}
	case *executionv1.RunnerReturned:
		if o.stage == lost || o.stage == ended {
			o.stage = running
		}
	case *executionv1.RetryScheduled:
		o.stage, o.deadline = waiting, d.GetNotBefore().AsTime().UnixMilli()
	case *executionv1.CancelRequested:
		o.retries = false
		if o.stage == ended || o.stage == waiting {
			o.stage = ended // The story says what is left.
		}
	}
	return true
}

// end keeps an execution for which a retry may have to be decided.
func (w *Watchdog) end(o *entry) bool {
	if o.retries && o.stage != waiting {
		o.stage = ended
	}
	return o.retries
}

// enter adds what a row says, when nothing is known.
func (w *Watchdog) enter(r clickhouse.OpenExecution) {
	key, err := uuid.Parse(r.ExecutionID)
	if err != nil {
		return
	}
	partition := kafka.PartitionFor([]byte(r.ExecutionID), w.c.Partitions)
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.open[key]; known || !w.owns(partition) {
		return
	}
	now := w.elapsed()
	o := entry{attempt: r.Attempt, partition: uint16(partition), retries: true, listed: now}
	if r.Runner != "" {
		o.runner = w.runner(r.Runner)
	}
	switch r.Status {
	case execution.StatusRequested:
		o.stage, o.deadline = requested, w.c.Clock.Now().Add(w.c.PrepareWithin+w.c.Margin).UnixMilli()
	case execution.StatusPrepared:
		// When it expires is in its launch spec, which is read soon.
		o.stage, o.deadline = prepared, w.c.Clock.Now().UnixMilli()
	case execution.StatusRunning:
		o.stage = running
	case execution.StatusRetrying:
		if o.stage = ended; r.RetryAt != nil {
			o.stage, o.deadline = waiting, r.RetryAt.UnixMilli()
		}
	case execution.StatusLost:
		o.stage = lost
	default:
		o.stage, o.deadline = exited, w.c.Clock.Now().Add(w.c.SealWithin).UnixMilli()
	}
	w.open[key] = o
}
