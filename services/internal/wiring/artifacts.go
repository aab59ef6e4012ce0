package wiring

import (
	"context"
	"errors"
	"sync"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/gateway/barrier"
	"verbatim.dev/services/recorder/files"
)

// Artifacts says where artifacts are kept.
type Artifacts struct {
	// URL is that of the store; empty: there are no artifacts.
	URL string
	// Compression is artifact.Plain or artifact.Zstd.
	Compression string
	// KeepDays is for how many days they are kept, from the day of the request on; 0 is for ever.
	KeepDays uint
}

// artifactsGroup is the consumer group that makes artifacts: one of its own, so that a slow store does not hold up the archive.
const artifactsGroup = "recorder.artifacts"

// artifactsInFlight bounds what may wait, in one partition, behind an attempt whose artifacts are being made.
const artifactsInFlight = 1024

// openArtifacts opens the store and returns the consumer that makes artifacts; none when there are to be none. What it opened is released and
// closed with the node, before what was opened earlier.
func openArtifacts(ctx context.Context, n *node, c Artifacts, archive *clickhouse.Store, p *kafka.Publisher) (consumers []consumer, err error) {
	if c.URL == "" {
		return nil, nil
	}
	store, err := openArtifactStore(ctx, n.Base, c.URL)
	if err != nil {
		return nil, err
	}
	admin, err := kafka.NewAdmin(n.Kafka)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	archived := barrier.New(admin, n.name, events.TopicExecutions)
	var removing sync.WaitGroup
	close := n.close
	n.close = func() error {
		removing.Wait()
		archived.Stop()
		return errors.Join(admin.Close(), store.Close(), close())
	}
	r, err := files.New(files.Config{
		Archive: archive, Barrier: archived, Store: store, Publisher: p, Partitions: partitions(), Compression: c.Compression,
		Logger: n.Logger, Registry: n.Registry,
	})
	if err != nil {
		return nil, err
	}
	owned, err := retention(n.Base, c, store, archive, &removing)
	if err != nil {
		r.Stop()
		return nil, err
	}
	release := n.release
	n.release = func() {
		r.Stop()
		release()
	}
	return []consumer{{topic: events.TopicExecutions, group: artifactsGroup, slow: true, owned: owned, inFlight: artifactsInFlight, inFlightBytes: sinkInFlightBytes, fetchBytes: sinkFetchBytes / 4, handle: r.Handle}}, nil
}

// retention lets the recorder that has the first partition remove artifacts of days that are over, as long as it has it.
func retention(b Base, c Artifacts, store *artifact.Store, archive *clickhouse.Store, running *sync.WaitGroup) (func(context.Context, int), error) {
	if c.KeepDays == 0 {
		return nil, nil
	}
	r, err := files.NewRetention(store, archive, c.KeepDays, b.Logger, b.Registry)
	if err != nil {
		return nil, err
	}
	return func(owned context.Context, partition int) {
		if partition == 0 {
			running.Go(func() { r.Run(owned) })
		}
	}, nil
}

// openArtifactStore opens a store that can be written. One that does not answer is taken all the same: an outage must not keep a service
// from starting whose other work goes on without it.
func openArtifactStore(ctx context.Context, b Base, url string) (*artifact.Store, error) {
	store, err := artifact.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	switch err := store.Check(ctx); {
	case errors.Is(err, artifact.ErrAway):
		b.Logger.ErrorContext(ctx, "the artifact store does not answer, artifacts wait for it", "error", err)
	case err != nil:
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}
