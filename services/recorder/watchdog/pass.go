package watchdog

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/internal/failure"
)

const (
	// askTimeout bounds a question to the broker, and a write.
	askTimeout = 5 * time.Second
	// stall is how much later than planned a pass may come before this process is taken to have stood still.
	stall = 3 * time.Second
	// stale is how old what a pass found out may be when it is acted on.
	stale = 30 * time.Second
	// longScan bounds the look at the rows of all days. It holds up a pass, after which every silence begins anew: even when it fails each
	// ScanInterval, there is to be time between for a silence.
	longScan = 10 * time.Second
	// most bounds what one pass looks at; the rest is for the next ones.
	most = 5_000
)

// candidate is an execution that is overdue by the table.
type candidate struct {
	key uuid.UUID
	o   entry
	why reason
}

// pass looks once at everything. An error means that it could not, and that silence counts anew.
func (w *Watchdog) pass(ctx context.Context) (err error) {
	began := w.elapsed()
	late := w.passed != 0 && began-w.passed > w.c.Sweep+stall
	defer func() {
		w.passed = w.elapsed()
		if err != nil || late {
			w.anew()
		}
	}()
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	beats, err := w.admin.EndOffsets(asking, events.TopicRunners)
	if err != nil {
		return err
	}
	archived, err := w.admin.CommittedOffsets(asking, w.c.Group, events.TopicExecutions)
	if err != nil {
		return err
	}
	behind := w.beatsRead.Load() < w.beatsEnd
	w.beatsEnd = beats[0]
	if late {
		return nil // The group may have given the partitions to others meanwhile, which is known in a moment.
	}
	if behind {
		w.anew()
	}
	if err := w.scan(ctx, began); err != nil {
		w.c.Logger.WarnContext(ctx, "the watchdog cannot read which executions are open", "error", err)
	}
	claims, err := w.admin.Commits(asking, runners, events.TopicWork)
	if err != nil {
		return err
	}
	if err := w.queued(ctx, began); err != nil {
		return err
	}
	overdue, looked := w.candidates(began, archived, claims)
	if err := w.act(ctx, began, overdue); err != nil {
		return err
	}
	if err := w.unprepared(ctx); err != nil {
		return err
	}
	return w.mark(ctx, looked)
}

// candidates are what is overdue in partitions of which everything is archived that was there at their mark. These need a new mark.
func (w *Watchdog) candidates(now time.Duration, archived map[int]int64, claims map[int]kafka.Commit) (found []candidate, looked []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ready := map[uint16]bool{}
	for partition, o := range w.owned {
		switch {
		case o.ctx.Err() != nil:
			delete(w.owned, partition)
			continue
		case o.set && archived[partition] < o.want:
			continue
		case o.set:
			ready[uint16(partition)] = true
		}
		looked = append(looked, partition)
	}
	wall := w.c.Clock.Now().UnixMilli()
	oldest := events.FirstExecutionID(w.c.Clock.Now().Add(-w.c.Horizon))
	for key, o := range w.open {
		if w.owned[int(o.partition)] == nil || (o.stage == lost || o.stage == idle) && key.String() < oldest {
			delete(w.open, key)
			continue
		}
		if !ready[o.partition] || len(found) == most {
			continue
		}
		if o.work > 0 && o.stage == prepared && w.taken(key, &o, now, claims) {
			w.open[key] = o
		}
		if why := w.overdue(&o, now, wall); why != nothing {
			found = append(found, candidate{key, o, why})
		}
	}
	w.metrics.open.Set(float64(len(w.open)))
	return found, looked
}

// mark notes where partitions end now.
func (w *Watchdog) mark(ctx context.Context, looked []int) error {
	if len(looked) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ends, err := w.admin.EndOffsets(ctx, events.TopicExecutions)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, partition := range looked {
		if o := w.owned[partition]; o != nil {
			o.want, o.set = ends[partition], true
		}
	}
	return nil
}

// together is how many executions are judged before what was found is published.
const together = 500

// act reads the stories of what is overdue, judges and publishes.
func (w *Watchdog) act(ctx context.Context, began time.Duration, overdue []candidate) error {
	for len(overdue) > 0 {
		part := overdue[:min(together, len(overdue))]
		overdue = overdue[len(part):]
		if err := w.actOn(ctx, began, part); err != nil {
			return err
		}
	}
	return nil
}

func (w *Watchdog) actOn(ctx context.Context, began time.Duration, part []candidate) error {
	ids, byID := make([]string, 0, len(part)), make(map[string]candidate, len(part))
	for _, c := range part {
		id := c.key.String()
		ids, byID[id] = append(ids, id), c
	}
	reading, cancel := context.WithTimeout(ctx, stale)
	defer cancel()
	for story, err := range w.archive.Stories(reading, ids) {
		if err != nil {
			// The broker is there, so silence goes on to count; the database is asked again in the next pass.
			w.c.Logger.WarnContext(ctx, "the watchdog cannot read the archive", "error", err)
			return nil
		}
		c := byID[story.ExecutionID]
		delete(byID, story.ExecutionID)
		v, err := w.judge(story, c.o, c.why)
		if err != nil {
			w.c.Logger.ErrorContext(ctx, "the watchdog cannot judge", "execution", story.ExecutionID, "error", err)
			continue
		}
		if err := w.execute(ctx, began, c, v); err != nil {
			return err
		}
	}
	for id, c := range byID { // Nothing is archived of it any more.
		w.c.Logger.DebugContext(ctx, "open execution is not in the archive", "execution", id)
		w.replace(c, verdict{})
	}
	return nil
}

// execute publishes what a verdict says, and changes the table when that is kept.
func (w *Watchdog) execute(ctx context.Context, began time.Duration, c candidate, v verdict) error {
	if v.event.ID != "" {
		w.mu.Lock()
		owns := w.owns(int(c.o.partition))
		w.mu.Unlock()
		if !owns {
			return nil
		}
		if w.elapsed()-began > stale {
			return fmt.Errorf("a pass took longer than %s, what it found is looked at again", stale)
		}
		err := w.publish(ctx, v.topic, v.event)
		if failure.IsPermanent(err) { // A next attempt, of a request that fits only just. Nobody else is to suffer from it.
			w.c.Logger.ErrorContext(ctx, "the watchdog cannot say it, and leaves the execution alone", "what", v.said, "execution", v.event.Subject, "attempt", v.event.Attempt, "error", err)
			v = verdict{keep: true, next: c.o}
			v.next.stage = idle
			w.replace(c, v)
			return nil
		}
		if err != nil {
			return err
		}
		w.metrics.said.WithLabelValues(v.said).Inc()
		w.c.Logger.InfoContext(ctx, "the watchdog acts", "what", v.said, "execution", v.event.Subject, "attempt", v.event.Attempt)
	}
	w.replace(c, v)
	return nil
}

// publish writes events of one topic. Its error is permanent (package failure) when an event is not fit for the topic.
func (w *Watchdog) publish(ctx context.Context, topic string, es ...events.Event) error {
	var ms []*message.Message
	for _, e := range es {
		m, err := codec.ToMessage(e)
		if err != nil {
			return failure.Permanent(fmt.Errorf("encode %s: %w", e.ID, err))
		}
		ms = append(ms, m)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := w.publisher.PublishContext(ctx, topic, ms...); err != nil {
		return failure.Publishing(fmt.Errorf("publish %s: %w", es[0].ID, err))
	}
	return nil
}

// replace changes an entry, unless something was heard since it was looked at.
func (w *Watchdog) replace(c candidate, v verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[c.key] != c.o {
		return
	}
	if v.keep {
		w.open[c.key] = v.next
	} else {
		delete(w.open, c.key)
	}
}

// scan adds what rows say to be open and is not in the table.
func (w *Watchdog) scan(ctx context.Context, now time.Duration) error {
	w.mu.Lock()
	wanted, long := w.scanSoon || now-w.scanned > w.c.ScanInterval, w.longSoon
	w.scanSoon, w.longSoon = false, false
	w.mu.Unlock()
	if !wanted {
		return nil
	}
	w.scanned = now
	clear(w.unread)
	ctx, cancel := context.WithTimeout(ctx, w.c.ScanInterval+stale)
	defer cancel()
	since := w.c.Clock.Now().Add(-w.c.Horizon)
	err := w.enterAll(w.rows.OpenExecutions(ctx, since))
	if err == nil && long {
		reading, cancel := context.WithTimeout(ctx, longScan)
		defer cancel()
		err = w.enterAll(w.rows.LongOpenExecutions(reading, since))
		long = err != nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longSoon = w.longSoon || long
	if err == nil {
		w.forget(w.elapsed())
	}
	return err
}

func (w *Watchdog) enterAll(rows iter.Seq2[clickhouse.OpenExecution, error]) error {
	for o, err := range rows {
		if err != nil {
			return err
		}
		w.enter(o)
	}
	return nil
}
