package gateway

import (
	"context"
	"errors"
	"iter"
	"time"

	"golang.org/x/sync/semaphore"

	"verbatim.dev/projections/clickhouse"
)

// A read of the archive holds a connection to the database for as long as its client reads. So fewer are let in than the
// store has connections (16), and slow clients cannot keep rows from being read.
const (
	archiveReads    = 12
	archivePatience = 10 * time.Second
)

var errTooManyReads = errors.New("too many outputs and events are being read at one time")

type boundedArchive struct {
	archive Archive
	reads   *semaphore.Weighted
}

func (a boundedArchive) Events(ctx context.Context, id string, afterOffset int64) iter.Seq2[clickhouse.ArchivedEvent, error] {
	return bounded(ctx, a.reads, a.archive.Events(ctx, id, afterOffset))
}

func (a boundedArchive) Output(ctx context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[clickhouse.Chunk, error] {
	return bounded(ctx, a.reads, a.archive.Output(ctx, id, attempt, stream, from, to))
}

// bounded iterates when there is room, for which it waits a while.
func bounded[T any](ctx context.Context, room *semaphore.Weighted, all iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		waiting, cancel := context.WithTimeoutCause(ctx, archivePatience, errTooManyReads)
		defer cancel()
		if err := room.Acquire(waiting, 1); err != nil {
			var none T
			yield(none, context.Cause(waiting))
			return
		}
		defer room.Release(1)
		all(yield)
	}
}
