package wiring

import (
	"context"
	"fmt"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/retry"
	"verbatim.dev/services/runner"
)

// control reads the control topic for one runner. Every runner reads all of it, from its beginning and without
// a group: a cancel must reach whichever runner has the execution, or will get it.
type control struct {
	Base
	runner *runner.Runner
	id     string // The runner's.
	cancel context.CancelFunc
	done   chan struct{}
}

// startControl returns when the cancels that were there are known to the runner; so no execution is started that
// was cancelled before.
func startControl(ctx context.Context, b Base, r *runner.Runner, id string) (*control, error) {
	admin, err := kafka.NewAdmin(b.Kafka)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, events.TopicControl)
	if err != nil {
		return nil, fmt.Errorf("find the end of the control topic: %w", err)
	}
	starts, err := admin.FirstOffsets(ctx, events.TopicControl)
	if err != nil {
		return nil, fmt.Errorf("find the start of the control topic: %w", err)
	}
	// The topic has one partition (events.Topics).
	reader, err := kafka.NewPartitionReader(b.Kafka, events.TopicControl, 0, starts[0])
	if err != nil {
		return nil, err
	}
	c := &control{Base: b, runner: r, id: id, done: make(chan struct{})}
	for record, err := range reader.Until(ctx, ends[0]) {
		if err != nil {
			reader.Close()
			return nil, fmt.Errorf("read the control topic: %w", err)
		}
		c.take(record)
	}
	var reading context.Context
	reading, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(c.done)
		defer reader.Close()
		// Ends with the context alone.
		_ = retry.Until(reading, b.Logger, "read the control topic", func() error {
			for {
				record, err := reader.Next(reading)
				if err != nil {
					return err
				}
				c.take(record)
			}
		})
	}()
	return c, nil
}

// take hands a cancel to the runner. What is no event is skipped: the recorder dead-letters it.
func (c *control) take(record kafka.Record) {
	e, err := codec.FromMessage(record.Message())
	if err != nil {
		return
	}
	switch asked := e.Data.(type) {
	case *executionv1.CancelRequested:
		c.runner.Cancel(e.Subject, asked.GetRequestedBy(), asked.GetReason())
	case *executionv1.CordonRequested:
		if e.Subject != c.id {
			return
		}
		if err := c.runner.Cordon(asked.GetCordoned(), asked.GetRequestedBy(), asked.GetReason()); err != nil {
			c.Logger.Error("runner cannot be cordoned or uncordoned", "error", err)
		}
	}
}

func (c *control) stop() error {
	c.cancel()
	<-c.done
	return nil
}
