package wiring

import (
	"context"
	"errors"
	"strconv"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/internal/lifecycle"
)

// Embedded is an embedded server as a lifecycle.Service.
type Embedded[S interface {
	Stop(ctx context.Context) error
}] struct {
	Open func(ctx context.Context) (S, error)
	// Server is there after Start.
	Server S
}

// Start implements lifecycle.Service.
func (e *Embedded[S]) Start(ctx context.Context) (err error) {
	e.Server, err = e.Open(ctx)
	return err
}

// Stop implements lifecycle.Service.
func (e *Embedded[S]) Stop(ctx context.Context) error { return e.Server.Stop(ctx) }

// setup makes topics and tables when it starts.
type setup struct {
	Base
	dsn  string
	keep clickhouse.Retention
	log  *time.Duration
}

// Setup returns the making of topics and tables as a service that is done when it has started. Topics that it makes keep
// requests and events for keepLog; nil is what events.Topics says.
func Setup(b Base, dsn string, keep clickhouse.Retention, keepLog *time.Duration) lifecycle.Service {
	return &setup{b, dsn, keep, keepLog}
}

// topics are those to make. The log's retention is that of everything an execution needs.
func (s *setup) topics() []kafka.Topic {
	topics := Topics()
	for _, t := range topics {
		switch t.Name {
		case events.TopicRequests, events.TopicWork, events.TopicExecutions, events.TopicControl, events.TopicStdin:
			if s.log != nil {
				t.Config["retention.ms"] = strconv.FormatInt(s.log.Milliseconds(), 10)
			}
		}
	}
	return topics
}

// Start implements lifecycle.Service.
func (s *setup) Start(ctx context.Context) error {
	if err := kafka.EnsureTopics(ctx, s.Kafka, s.topics()); err != nil {
		return err
	}
	store, err := clickhouse.Open(ctx, s.dsn)
	if err != nil {
		return err
	}
	err = store.Migrate(ctx)
	if err == nil {
		err = store.SetRetention(ctx, s.keep)
	}
	return errors.Join(err, store.Close())
}

// Stop implements lifecycle.Service.
func (s *setup) Stop(context.Context) error { return nil }
