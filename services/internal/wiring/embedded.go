package wiring

import (
	"context"
	"errors"

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
}

// Setup returns the making of topics and tables as a service that is done when it has started.
func Setup(b Base, dsn string, keep clickhouse.Retention) lifecycle.Service {
	return &setup{b, dsn, keep}
}

// Start implements lifecycle.Service.
func (s *setup) Start(ctx context.Context) error {
	if err := kafka.EnsureTopics(ctx, s.Kafka, Topics()); err != nil {
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
