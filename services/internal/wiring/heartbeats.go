package wiring

import (
	"context"
	"fmt"
	"sync"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/gateway/fleet"
	"verbatim.dev/services/internal/retry"
)

// heartbeats reads the topic of runners for a gateway. Every gateway reads all of it, without a group.
type heartbeats struct {
	Base
	admin  *kafka.Admin
	fleet  *fleet.Fleet
	cancel context.CancelFunc
	done   chan struct{}
	// caughtUp is closed when what was there at the start is known.
	caughtUp chan struct{}
}

// catchUp bounds how long a start waits for the runners of which something was heard before.
const catchUp = 5 * time.Second

// startHeartbeats returns when the runners are known of which something was heard before, or when that takes long: a gateway serves
// without them. The admin stays the caller's.
func startHeartbeats(ctx context.Context, b Base, admin *kafka.Admin, f *fleet.Fleet) *heartbeats {
	h := &heartbeats{Base: b, admin: admin, fleet: f, done: make(chan struct{}), caughtUp: make(chan struct{})}
	var reading context.Context
	reading, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go h.run(reading)
	select {
	case <-h.caughtUp:
	case <-time.After(catchUp):
	case <-ctx.Done():
	}
	return h
}

func (h *heartbeats) run(ctx context.Context) {
	defer close(h.done)
	caughtUp := sync.OnceFunc(func() { close(h.caughtUp) })
	// Ends with the context alone. What it stood at may be gone after an error, so each try begins anew.
	_ = retry.Until(ctx, h.Logger, "read the topic of runners", func() error {
		ends, err := h.admin.EndOffsets(ctx, events.TopicRunners)
		if err != nil {
			return fmt.Errorf("find the end of the topic of runners: %w", err)
		}
		// From the oldest heartbeat on that still means something. The topic has one partition (events.Topics).
		starts, err := h.admin.OffsetsAt(ctx, events.TopicRunners, time.Now().Add(-fleet.ForgottenAfter))
		if err != nil {
			return fmt.Errorf("find the newest heartbeats: %w", err)
		}
		reader, err := kafka.NewPartitionReader(h.Kafka, events.TopicRunners, 0, starts[0])
		if err != nil {
			return err
		}
		defer reader.Close()
		for record, err := range reader.Until(ctx, ends[0]) {
			if err != nil {
				return err
			}
			received := time.Now()
			if record.Time.Before(received) { // Of what waits to be read the broker knows when it came.
				received = record.Time
			}
			h.take(record, received)
		}
		caughtUp()
		for {
			record, err := reader.Next(ctx)
			if err != nil {
				return err
			}
			h.take(record, time.Now())
		}
	})
}

// take hands a heartbeat on.
func (h *heartbeats) take(record kafka.Record, received time.Time) {
	e, err := codec.FromMessage(record.Message())
	if err != nil {
		return // The recorder dead-letters it.
	}
	h.fleet.Take(e, received)
}

func (h *heartbeats) stop() {
	h.cancel()
	<-h.done
}
