package gateway

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/gateway/barrier"
	"verbatim.dev/services/gateway/tail"
)

// NewLog returns the log of facts as tails read it. The admin stays the caller's.
func NewLog(c kafka.Config, a *kafka.Admin) tail.Log { return executionLog{c, a} }

type executionLog struct {
	config kafka.Config
	admin  *kafka.Admin
}

func (l executionLog) EndOffset(ctx context.Context, partition int) (int64, error) {
	return one(partition)(l.admin.EndOffsets(ctx, events.TopicExecutions))
}

func (l executionLog) OffsetAt(ctx context.Context, partition int, t time.Time) (int64, error) {
	return one(partition)(l.admin.OffsetsAt(ctx, events.TopicExecutions, t))
}

func one(partition int) func(map[int]int64, error) (int64, error) {
	return func(offsets map[int]int64, err error) (int64, error) {
		if err != nil {
			return 0, err
		}
		offset, ok := offsets[partition]
		if !ok {
			return 0, fmt.Errorf("%s has no partition %d", events.TopicExecutions, partition)
		}
		return offset, nil
	}
}

func (l executionLog) Read(partition int, from int64) (tail.Reader, error) {
	r, err := kafka.NewPartitionReader(l.config, events.TopicExecutions, partition, from)
	if err != nil {
		return nil, err
	}
	return logReader{r}, nil
}

type logReader struct{ *kafka.PartitionReader }

func (r logReader) Next(ctx context.Context) (tail.Record, error) {
	k, err := r.PartitionReader.Next(ctx)
	if gone := (*kafka.OffsetError)(nil); errors.As(err, &gone) {
		return tail.Record{}, fmt.Errorf("%w: %w", tail.ErrOffsetGone, err)
	}
	if err != nil {
		return tail.Record{}, err
	}
	headers := make(map[string]string, len(k.Headers))
	for _, h := range k.Headers {
		headers[h.Key] = string(h.Value)
	}
	return tail.Record{Offset: k.Offset, Key: k.Key, Headers: headers, Value: k.Value, Time: k.Time}, nil
}

// tailArchive is the archive as tails read it, with the recorder's offset as its end.
type tailArchive struct {
	archive  Archive
	recorder *barrier.Barrier
}

func (a tailArchive) Stored(ctx context.Context, partition int) (int64, bool, error) {
	return a.recorder.Stored(ctx, partition)
}

func (a tailArchive) Facts(ctx context.Context, id string, after int64) iter.Seq2[tail.Fact, error] {
	return func(yield func(tail.Fact, error) bool) {
		for e, err := range a.archive.Events(ctx, id, after) {
			if err != nil {
				yield(tail.Fact{}, err)
				return
			}
			if !yield(tail.Fact{Event: e.Event, Partition: e.Partition, Offset: e.Offset, ReceivedAt: e.ReceivedAt}, nil) {
				return
			}
		}
	}
}
