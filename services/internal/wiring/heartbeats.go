package wiring

import (
	"context"
	"fmt"
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
}

// startHeartbeats returns when the runners are known of which something was heard before. The admin stays the caller's.
func startHeartbeats(ctx context.Context, b Base, admin *kafka.Admin, f *fleet.Fleet) (*heartbeats, error) {
	h := &heartbeats{Base: b, admin: admin, fleet: f, done: make(chan struct{})}
	ends, err := admin.EndOffsets(ctx, events.TopicRunners)
	if err != nil {
		return nil, fmt.Errorf("find the end of the topic of runners: %w", err)
	}
	reader, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	for reader.Offset() < ends[0] {
		record, err := reader.Next(ctx)
		if err != nil {
			reader.Close()
			return nil, fmt.Errorf("read the topic of runners: %w", err)
		}
		h.take(record, record.Time)
	}
	var reading context.Context
	reading, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go h.run(reading, reader)
	return h, nil
}

// open returns a reader from the oldest heartbeat on that still means something. The topic has one partition (events.Topics).
func (h *heartbeats) open(ctx context.Context) (*kafka.PartitionReader, error) {
	starts, err := h.admin.OffsetsAt(ctx, events.TopicRunners, time.Now().Add(-fleet.ForgottenAfter))
	if err != nil {
		return nil, fmt.Errorf("find the newest heartbeats: %w", err)
	}
	return kafka.NewPartitionReader(h.Kafka, events.TopicRunners, 0, starts[0])
}

func (h *heartbeats) run(ctx context.Context, reader *kafka.PartitionReader) {
	defer close(h.done)
	// Ends with the context alone.
	_ = retry.Until(ctx, h.Logger, "read the topic of runners", func() (err error) {
		if reader == nil {
			if reader, err = h.open(ctx); err != nil {
				return err
			}
		}
		defer func() {
			reader.Close()
			reader = nil // What it stood at may be gone: the next one begins anew.
		}()
		for {
			record, err := reader.Next(ctx)
			if err != nil {
				return err
			}
			h.take(record, time.Now())
		}
	})
}

// take hands a heartbeat on. What came while nobody read was sent before now, and a broker's clock may be ahead.
func (h *heartbeats) take(record kafka.Record, received time.Time) {
	e, err := codec.FromMessage(record.Message())
	if err != nil {
		return // The recorder dead-letters it.
	}
	if now := time.Now(); received.After(now) {
		received = now
	}
	h.fleet.Take(e, received)
}

func (h *heartbeats) stop() {
	h.cancel()
	<-h.done
}
