package wiring

import (
	"context"
	"errors"
	"fmt"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/retry"
	"verbatim.dev/services/runner"
)

// upload reads an upload's parts for a runner, from where the request says that they lie. Parts of others lie between them.
func upload(b Base) func(context.Context, *executionv1.StdinUpload, func(uint64, []byte) error) error {
	return func(ctx context.Context, u *executionv1.StdinUpload, take func(offset uint64, data []byte) error) error {
		if u.GetStartOffset() < 0 {
			return runner.ErrUploadGone
		}
		partition := kafka.PartitionFor([]byte(u.GetUpload()), Topics(events.TopicStdin)[0].Partitions)
		first, end, err := bounds(ctx, b, partition)
		if err != nil {
			return err
		}
		// What lay before the parts may have gone with its time, and no request decides how long is waited for what never comes.
		first, end = max(first, u.GetStartOffset()), min(end, u.GetEndOffset())
		reader, err := kafka.NewPartitionReader(b.Kafka, events.TopicStdin, partition, first)
		if err != nil {
			return err
		}
		defer reader.Close()
		for record, err := range reader.Until(ctx, end) {
			if gone := (*kafka.OffsetError)(nil); errors.As(err, &gone) {
				return runner.ErrUploadGone
			}
			if err != nil {
				return fmt.Errorf("read the topic of stdin parts: %w", err)
			}
			if string(record.Key) != u.GetUpload() {
				continue
			}
			e, err := codec.FromMessage(record.Message())
			if err != nil {
				continue // Anybody may write to a topic.
			}
			part, ok := e.Data.(*executionv1.StdinPart)
			if !ok || e.Subject != u.GetUpload() {
				continue
			}
			if err := take(part.GetOffset(), part.GetData()); err != nil {
				return err
			}
			if part.GetOffset()+uint64(len(part.GetData())) >= u.GetSizeBytes() {
				break
			}
		}
		return nil
	}
}

// bounds are where a partition of the topic begins and ends. They wait for a broker that is away.
func bounds(ctx context.Context, b Base, partition int) (first, end int64, err error) {
	admin, err := kafka.NewAdmin(b.Kafka)
	if err != nil {
		return 0, 0, err
	}
	defer admin.Close()
	err = retry.Until(ctx, b.Logger, "find the parts of an uploaded standard input", func() error {
		firsts, err := admin.FirstOffsets(ctx, events.TopicStdin)
		if err != nil {
			return err
		}
		ends, err := admin.EndOffsets(ctx, events.TopicStdin)
		first, end = firsts[partition], ends[partition]
		return err
	})
	return first, end, err
}
