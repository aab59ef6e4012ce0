package watchdog

import (
	"context"
	"fmt"
	"sync/atomic"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/retry"
)

// offset is how far a topic was read.
type offset struct{ atomic.Int64 }

// listen reads the topic of runners: every recorder all of it, without a group. The topic has one partition (events.Topics).
func (w *Watchdog) listen(ctx context.Context) {
	// Ends with the context alone. What it stood at may be gone after an error, so each try begins anew.
	_ = retry.Until(ctx, w.c.Logger, "read the topic of runners", func() error {
		// Earlier heartbeats say since when a runner has been silent.
		starts, err := w.admin.OffsetsAt(ctx, events.TopicRunners, w.c.Clock.Now().Add(-forgotten))
		if err != nil {
			return fmt.Errorf("find the newest heartbeats: %w", err)
		}
		reader, err := kafka.NewPartitionReader(w.c.Kafka, events.TopicRunners, 0, starts[0])
		if err != nil {
			return err
		}
		defer reader.Close()
		reader.Moved = w.beatsRead.Store
		for {
			w.beatsRead.Store(reader.Offset())
			record, err := reader.Next(ctx)
			if err != nil {
				return err
			}
			if e, err := codec.FromMessage(record.Message()); err == nil { // What is no event is dead-lettered by who reads it as a group.
				w.Beat(e, record.Time)
			}
		}
	})
}
