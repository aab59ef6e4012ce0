package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
)

// log reads the topic of facts, partition by partition, from the oldest record there is to what was the end at the start.
type log struct {
	config kafka.Config
	filter Filter

	at   map[int]int64 // next offset by partition
	done uint64        // records
}

// Log is the source that is the truth, as far as its retention goes.
func Log(c kafka.Config, f Filter) Source { return &log{config: c, filter: f} }

func (l *log) Name() string { return "kafka" }

func (l *log) Grouped() bool { return false }

// bounds returns the first and the end offset of the partitions that are read.
func (l *log) bounds(ctx context.Context, position json.RawMessage) (first, end map[int]int64, err error) {
	admin, err := kafka.NewAdmin(l.config)
	if err != nil {
		return nil, nil, err
	}
	defer admin.Close()
	if end, err = admin.EndOffsets(ctx, events.TopicExecutions); err != nil {
		return nil, nil, err
	}
	if first, err = admin.OffsetsAt(ctx, events.TopicExecutions, l.filter.Since); err != nil {
		return nil, nil, err
	}
	if position != nil {
		saved := map[int]int64{}
		if err := json.Unmarshal(position, &saved); err != nil {
			return nil, nil, fmt.Errorf("read the saved position: %w", err)
		}
		for partition, offset := range saved {
			first[partition] = max(first[partition], offset)
		}
	}
	if l.filter.Execution != "" {
		only := kafka.PartitionFor([]byte(l.filter.Execution), len(end))
		maps.DeleteFunc(end, func(partition int, _ int64) bool { return partition != only })
	}
	return first, end, nil
}

func (l *log) Total(ctx context.Context, position json.RawMessage) (uint64, string, error) {
	first, end, err := l.bounds(ctx, position)
	if err != nil {
		return 0, "", err
	}
	total := uint64(0)
	for partition, offset := range end {
		total += uint64(max(0, offset-first[partition]))
	}
	return total, "records", nil
}

func (l *log) Facts(ctx context.Context, position json.RawMessage) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		first, end, err := l.bounds(ctx, position)
		if err != nil {
			yield(Fact{}, err)
			return
		}
		l.at = maps.Clone(first)
		for partition := range len(first) {
			if err := l.partition(ctx, partition, end[partition], yield); err != nil {
				if err != errStopped { //nolint:errorlint // It is returned as it is.
					yield(Fact{}, err)
				}
				return
			}
		}
	}
}

func (l *log) partition(ctx context.Context, partition int, end int64, yield func(Fact, error) bool) error {
	if l.at[partition] >= end {
		return nil
	}
	reader, err := kafka.NewPartitionReader(l.config, events.TopicExecutions, partition, l.at[partition])
	if err != nil {
		return err
	}
	defer reader.Close()
	for record, err := range reader.Until(ctx, end) {
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		l.at[partition] = record.Offset + 1
		l.done++
		e, err := codec.FromMessage(record.Message())
		if err != nil || e.AboutExecution() != nil {
			continue // The recorder has dead-lettered it.
		}
		if !yield(Fact{e, record.Time}, nil) {
			return errStopped
		}
	}
	l.at[partition] = end
	return nil
}

func (l *log) Position() (json.RawMessage, uint64) {
	at, _ := json.Marshal(l.at) // Numbers always can be.
	return at, l.done
}
