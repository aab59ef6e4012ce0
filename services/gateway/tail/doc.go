// Package tail follows single executions through the log of facts, from their first fact on and live.
//
// A fact is first in Kafka and a little later in the archive. The recorder's committed offset is the
// seam: everything below it is in the archive, so a tail reads facts below it there and everything from it
// on in Kafka. No clock is involved and nothing is read twice.
//
//	           committed offset of the recorder       the hub's next offset
//	                          │                               │
//	────── archive ───────────┼────── a reader of its own ────┼────── the hub ──────►
//	   facts of one           │   short: the recorder is      │  one reader per partition
//	   execution, by key      │   about a second behind       │  for all tails
//
// The hub reads a partition while somebody follows an execution in it: it starts at the end of the log with the
// first subscriber and stops with the last. Subscribing gives, under the lock under which the hub hands out
// records, the offset of the record the hub hands out next; what lies below is the subscriber's to catch up
// with. Each subscriber has a bounded queue. One that overflows loses nothing: the subscriber drains the queue and
// catches up again from there, at its own pace, in bounded parts, each with a reader of its own.
//
// A producer that is not sure whether a fact was written writes it again, so the log may hold it twice; a tail
// tells it once.
//
// A tail ends when nothing more is expected: the output of the latest attempt is sealed, or it was never started, or its runner was lost,
// and the retry policy asks for no other attempt. A broker that is away is waited for.
//
// Facts of an execution in another partition than its key's are not followed: offsets of two partitions
// have no order. Records that are no events are skipped here; the recorder dead-letters them.
package tail

import (
	"context"
	"errors"
	"iter"
	"time"

	"verbatim.dev/events"
)

// Errors a tail may end with.
var (
	// ErrStopped says that the hub was stopped.
	ErrStopped = errors.New("the gateway stops")
	// ErrOffsetGone says that the log no longer has, or does not yet have, an offset that must be read.
	ErrOffsetGone = errors.New("the log does not hold this offset")
)

// Fact is an event and where it stands in its partition.
type Fact struct {
	Event      events.Event
	Partition  int
	Offset     int64
	ReceivedAt time.Time
}

// Record is a record of the log as it came.
type Record struct {
	Offset  int64
	Key     []byte
	Headers map[string]string
	Value   []byte
	Time    time.Time
}

// Archive holds the facts that have left the short term. It is safe for concurrent use.
type Archive interface {
	// Facts yields the archived facts of an execution whose offset is above after, by rising offset,
	// each once. An error comes last.
	Facts(ctx context.Context, id string, after int64) iter.Seq2[Fact, error]
	// Stored returns the offset below which every fact of the partition is archived; false when that is not known.
	Stored(ctx context.Context, partition int) (int64, bool, error)
}

// Log is the log of facts, topic events.TopicExecutions. It is safe for concurrent use.
type Log interface {
	// EndOffset returns the offset the partition's next record will have.
	EndOffset(ctx context.Context, partition int) (int64, error)
	// OffsetAt returns the offset of the first record the broker took at t or later, or the end offset.
	OffsetAt(ctx context.Context, partition int, t time.Time) (int64, error)
	// Read opens a reader. It may connect only with the first Next.
	Read(partition int, from int64) (Reader, error)
}

// Reader reads one partition in order. It is used by one goroutine.
type Reader interface {
	// Next waits for the next record. An error other than the context's and ErrOffsetGone means that a
	// new reader may have more luck.
	Next(ctx context.Context) (Record, error)
	Close() error
}
