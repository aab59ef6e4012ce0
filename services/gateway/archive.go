package gateway

import (
	"context"
	"errors"
	"iter"
	"time"

	"golang.org/x/sync/semaphore"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// Bounds of reading the archive: fewer at one time than the store has connections (16), and how long others
// wait for their turn.
const (
	archiveReads    = 12
	archivePatience = 10 * time.Second
	// outputPart is a page of the store's, so that a part is one query; eventsPart is what a tail holds.
	outputPart = 8 << 20
	eventsPart = 4 << 20
)

var errTooManyReads = errors.New("too many outputs and events are being read at one time")

// boundedArchive reads in parts. A part is taken into memory at the database's pace and handed out at the
// client's, so a slow client holds no connection to the database.
type boundedArchive struct {
	archive Archive
	reads   *semaphore.Weighted
}

// Events yields an execution's facts of the log of facts above an offset, by rising offset, each once.
func (a boundedArchive) Events(ctx context.Context, id string, afterOffset int64) iter.Seq2[clickhouse.ArchivedEvent, error] {
	return func(yield func(clickhouse.ArchivedEvent, error) bool) {
		var seen execution.Seen // The store forgets between two parts.
		size := func(e clickhouse.ArchivedEvent) int { return len(e.Event.Payload) + 1024 }
		for {
			part, more, err := gather(ctx, a.reads, a.archive.Events(ctx, id, afterOffset), size, eventsPart)
			for _, e := range part {
				if e.Topic != events.TopicExecutions {
					continue
				}
				afterOffset = e.Offset
				if added, sure := seen.Add(e.Event); sure && !added {
					continue
				}
				if !yield(e, nil) {
					return
				}
			}
			if err != nil {
				yield(clickhouse.ArchivedEvent{}, err)
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// Stories is Archive's.
func (a boundedArchive) Stories(ctx context.Context, ids []string) iter.Seq2[*clickhouse.Story, error] {
	return func(yield func(*clickhouse.Story, error) bool) {
		waiting, cancel := context.WithTimeoutCause(ctx, archivePatience, errTooManyReads)
		defer cancel()
		if err := a.reads.Acquire(waiting, 1); err != nil {
			yield(nil, context.Cause(waiting))
			return
		}
		defer a.reads.Release(1)
		for story, err := range a.archive.Stories(waiting, ids) {
			if !yield(story, err) {
				return
			}
		}
	}
}

// Output is Archive's.
func (a boundedArchive) Output(ctx context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[clickhouse.Chunk, error] {
	return func(yield func(clickhouse.Chunk, error) bool) {
		size := func(c clickhouse.Chunk) int { return len(c.Data) }
		for {
			part, more, err := gather(ctx, a.reads, a.archive.Output(ctx, id, attempt, stream, from, to), size, outputPart)
			for _, c := range part {
				attempt, from = c.Attempt, c.Offset+uint64(len(c.Data))
				if !yield(c, nil) {
					return
				}
			}
			if err != nil {
				yield(clickhouse.Chunk{}, err)
			}
			if err != nil || !more || from == to {
				return
			}
		}
	}
}

// gather takes items up to a size, when it is its turn, and tells whether there may be more.
func gather[T any](ctx context.Context, room *semaphore.Weighted, all iter.Seq2[T, error], size func(T) int, limit int) (part []T, more bool, err error) {
	waiting, cancel := context.WithTimeoutCause(ctx, archivePatience, errTooManyReads)
	defer cancel()
	if err := room.Acquire(waiting, 1); err != nil {
		return nil, false, context.Cause(waiting)
	}
	defer room.Release(1)
	total := 0
	for item, err := range all {
		if err != nil {
			return part, false, err
		}
		part = append(part, item)
		if total += size(item); total >= limit {
			return part, true, nil
		}
	}
	return part, false, nil
}
