package wiring

import (
	"context"
	"fmt"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/fleet"
)

// othersFree asks the newest heartbeats of the other runners whether one of them has a free slot. A heartbeat is up to 2 s old, so the
// answer may be wrong; then work goes to somebody who has to wait, too, and asks in turn.
func othersFree(b Base, id string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		admin, err := kafka.NewAdmin(b.Kafka)
		if err != nil {
			return false, err
		}
		defer admin.Close()
		ends, err := admin.EndOffsets(ctx, events.TopicRunners)
		if err != nil {
			return false, fmt.Errorf("find the end of the topic of runners: %w", err)
		}
		starts, err := admin.OffsetsAt(ctx, events.TopicRunners, time.Now().Add(-fleet.SilentAfter))
		if err != nil {
			return false, fmt.Errorf("find the newest heartbeats: %w", err)
		}
		// The topic has one partition (events.Topics).
		reader, err := kafka.NewPartitionReader(b.Kafka, events.TopicRunners, 0, starts[0])
		if err != nil {
			return false, err
		}
		defer reader.Close()
		free := map[string]bool{}
		for record, err := range reader.Until(ctx, ends[0]) {
			if err != nil {
				return false, fmt.Errorf("read the topic of runners: %w", err)
			}
			e, err := codec.FromMessage(record.Message())
			if err != nil {
				continue // The recorder dead-letters it.
			}
			beat, ok := e.Data.(*executionv1.RunnerHeartbeat)
			if !ok || beat.GetRunner() != e.Subject || e.Subject == id {
				continue
			}
			switch hasSlot := len(beat.GetRunning()) < int(beat.GetSlots()) && !beat.GetCordoned() && !beat.GetStopping(); {
			case !hasSlot:
				delete(free, e.Subject)
			case len(free) < fleet.Limit: // Whatever is written to the topic.
				free[e.Subject] = true
			}
		}
		return len(free) > 0, nil
	}
}
