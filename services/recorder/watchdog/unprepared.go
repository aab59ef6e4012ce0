package watchdog

import (
	"context"
	"fmt"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/failure"
)

// preparers is the service whose offsets say which requests were prepared.
const preparers = "preparer"

// unprepared closes requests that no preparer took in time: those past what the preparers' group has committed. A preparer that
// comes back refuses them as well, for their age.
func (w *Watchdog) unprepared(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ends, err := w.admin.EndOffsets(asking, events.TopicRequests)
	if err != nil {
		return err
	}
	done, err := w.admin.CommittedOffsets(asking, preparers, events.TopicRequests)
	if err != nil {
		return err
	}
	firsts, err := w.admin.FirstOffsets(asking, events.TopicRequests)
	if err != nil {
		return err
	}
	for partition, end := range ends {
		// What was committed may be gone, when preparers were away for longer than requests are kept.
		from := max(done[partition], w.unread[partition], firsts[partition])
		if from >= end || w.elapsed() < w.aside[partition] {
			continue
		}
		next, err := w.readRequests(ctx, partition, from, end)
		w.unread[partition] = next
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && next == from {
			w.setAside(ctx, partition, err)
		}
	}
	return nil
}

// setAside leaves a partition of requests alone for a while. Others must not suffer from it: a pass that fails, or takes long, begins
// everybody's silence anew. So there are many silences between two tries.
func (w *Watchdog) setAside(ctx context.Context, partition int, err error) {
	const silences = 10
	pause := max(w.c.ScanInterval, silences*w.c.Silence())
	w.aside[partition] = w.elapsed() + pause
	w.c.Logger.WarnContext(ctx, "the watchdog cannot close requests that nobody prepared, it tries again later", "partition", partition, "pause", pause, "error", err)
}

// readRequests closes what is overdue in [from, end) of a partition, and returns where to go on.
func (w *Watchdog) readRequests(ctx context.Context, partition int, from, end int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reader, err := kafka.NewPartitionReader(w.c.Kafka, events.TopicRequests, partition, from)
	if err != nil {
		return from, err
	}
	defer reader.Close()
	next := from
	for record, err := range reader.Until(ctx, end) {
		if err != nil {
			return next, fmt.Errorf("read requests: %w", err)
		}
		if w.c.Clock.Now().Sub(record.Time) < w.c.PrepareWithin+w.c.Margin {
			return next, nil
		}
		taken, err := w.refuse(ctx, &record)
		if err != nil || !taken {
			return next, err
		}
		next = record.Offset + 1
	}
	return end, nil
}

// refuse closes a request, unless it is another recorder's or was prepared after all. It reports false when it is to be looked at again.
func (w *Watchdog) refuse(ctx context.Context, record *kafka.Record) (bool, error) {
	e, err := codec.FromMessage(record.Message())
	if err != nil {
		return true, nil //nolint:nilerr // The preparer dead-letters it.
	}
	facts, attempt := []events.Event{e}, uint32(1)
	switch e.Data.(type) {
	case *executionv1.ExecutionRequested:
		facts[0].Time = e.HappenedAt(record.Time) // As the preparer does.
	case *executionv1.RetryRequested:
		facts, attempt = nil, e.Attempt
	default:
		return true, nil
	}
	w.mu.Lock()
	mine := w.owns(kafka.PartitionFor([]byte(e.Subject), w.c.Partitions))
	w.mu.Unlock()
	if !mine {
		return true, nil // When that changes, all of them are looked at again.
	}
	for story, err := range w.archive.Stories(ctx, []string{e.Subject}) {
		if err != nil {
			w.c.Logger.WarnContext(ctx, "the watchdog cannot read the archive", "error", err)
			return false, nil
		}
		for _, f := range story.Facts {
			if f.Event.Attempt >= attempt {
				return true, nil
			}
		}
	}
	failed, err := producer.Event(e.Subject, attempt, 1, w.c.Clock.Now(), notPrepared(w.c.PrepareWithin))
	if err != nil {
		return true, nil //nolint:nilerr // It cannot fail for what was decoded.
	}
	failed.Traceparent = e.Traceparent
	err = w.publish(ctx, events.TopicExecutions, append(facts, failed)...)
	if failure.IsPermanent(err) { // The request does not fit into the log. That it failed does.
		err = w.publish(ctx, events.TopicExecutions, failed)
	}
	if failure.IsPermanent(err) {
		w.c.Logger.ErrorContext(ctx, "the watchdog cannot say that nobody prepared it", "execution", e.Subject, "attempt", attempt, "error", err)
		return true, nil
	}
	if err != nil {
		return false, err
	}
	w.metrics.said.WithLabelValues("preparation expired").Inc()
	w.c.Logger.InfoContext(ctx, "the watchdog acts", "what", "preparation expired", "execution", e.Subject, "attempt", attempt, "age", time.Since(record.Time).Round(time.Second))
	return true, nil
}
