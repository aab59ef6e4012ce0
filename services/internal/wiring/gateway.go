package wiring

import (
	"context"
	"errors"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/gateway/fleet"
)

// Front is the gateway with what it stands on.
type Front struct {
	Base
	config gateway.Config
	dsn    string
	files  Artifacts

	gateway   *gateway.Gateway
	publisher *kafka.Publisher
	admin     *kafka.Admin
	store     *clickhouse.Store
	artifacts *artifact.Store
	runners   *heartbeats
}

// Gateway returns the gateway. Config's Logger, Registry and (when empty) ClickHouseURL are filled in.
// It reads large output from artifacts when there are any.
func Gateway(b Base, c gateway.Config, dsn string, files Artifacts) *Front {
	c.Logger, c.Registry = b.Logger, b.Registry
	if c.ClickHouseURL == "" {
		c.ClickHouseURL = dsn
	}
	return &Front{Base: b, config: c, dsn: dsn, files: files}
}

// Start implements lifecycle.Service.
func (f *Front) Start(ctx context.Context) error {
	if err := f.start(ctx); err != nil {
		return errors.Join(err, f.close())
	}
	return nil
}

func (f *Front) start(ctx context.Context) (err error) {
	if err := f.config.Validate(); err != nil {
		return err
	}
	if err := kafka.CheckTopics(ctx, f.Kafka, Topics()); err != nil {
		return err
	}
	if f.store, err = openStore(ctx, f.Base, f.dsn); err != nil {
		return err
	}
	if f.admin, err = kafka.NewAdmin(f.Kafka); err != nil {
		return err
	}
	if f.publisher, err = newPublisher(f.Kafka, kafka.PublisherOptions{}); err != nil {
		return err
	}
	known := fleet.New()
	f.runners = startHeartbeats(ctx, f.Base, f.admin, known)
	var checks []gateway.Check
	for name, check := range f.Checks.All() {
		checks = append(checks, gateway.Check{Name: name, Check: check})
	}
	deps := gateway.Deps{
		Rows: f.store, Archive: f.store, Publisher: f.publisher, Offsets: f.admin, Log: gateway.NewLog(f.Kafka, f.admin), Fleet: known, Checks: checks,
	}
	if f.files.URL != "" {
		if f.artifacts, err = artifact.Open(ctx, f.files.URL); err != nil {
			return err
		}
		deps.Artifacts = f.artifacts
	}
	f.gateway, err = gateway.New(f.config, deps)
	if err != nil {
		return err
	}
	return f.gateway.Start(ctx)
}

// Addr is the address in use, after Start.
func (f *Front) Addr() string { return f.gateway.Addr() }

// Failed implements lifecycle.Failing.
func (f *Front) Failed() <-chan error { return f.gateway.Failed() }

// Stop implements lifecycle.Service.
func (f *Front) Stop(ctx context.Context) error {
	return errors.Join(f.gateway.Stop(ctx), f.close())
}

func (f *Front) close() error {
	var errs []error
	if f.runners != nil {
		f.runners.stop()
	}
	if f.publisher != nil {
		errs = append(errs, f.publisher.Close())
	}
	if f.admin != nil {
		errs = append(errs, f.admin.Close())
	}
	if f.artifacts != nil {
		errs = append(errs, f.artifacts.Close())
	}
	if f.store != nil {
		errs = append(errs, f.store.Close())
	}
	return errors.Join(errs...)
}

// newPublisher returns a publisher that takes the largest record the topics admit.
func newPublisher(c kafka.Config, o kafka.PublisherOptions) (*kafka.Publisher, error) {
	const batchOverhead = 64 << 10
	o.MaxMessageBytes = events.MaxRecordBytes - batchOverhead
	return kafka.NewPublisher(c, o)
}
