// Package projector folds facts into rows: consume, fold, insert, acknowledge, in that order.
//
// Folded states are kept for the executions that were heard of lately, and loaded from their rows
// otherwise. A state in memory is only as good as the assignment it was folded under: when a partition
// was elsewhere in between, another projector may have folded more, so the states of a partition are
// forgotten whenever its assignment changes. Whoever folds a prefix of a key's facts gets the same row
// and version for it, so an overlap of two projectors is harmless.
//
// A fact in another partition than its execution's is left to the recorder, which publishes it again where it
// belongs; so all facts of an execution are folded by one projector at a time.
//
// Killed anywhere, it folds again what it had not acknowledged; facts that a row already holds change
// nothing. When the database is away it waits. A record that is no event is skipped here: the
// recorder, which reads the same topic, dead-letters it.
package projector

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/internal/batch"
	"verbatim.dev/services/internal/retry"
	"verbatim.dev/services/internal/router"
	"verbatim.dev/services/internal/sink"
)

// Rows stores folded states. Storing an older version of a row changes nothing.
type Rows interface {
	LoadStates(ctx context.Context, ids []string) (map[string]*execution.State, error)
	InsertRows(ctx context.Context, states []*execution.State) error
	// EraseRows removes what was stored of deleted executions, but for the row that says so.
	EraseRows(ctx context.Context, ids []string) error
}

// Limits of a batch: a row shows what happened within a second.
var limits = batch.Config{Items: 20_000, Bytes: 32 << 20, Delay: 250 * time.Millisecond}

// Projector folds facts. It is safe for concurrent use.
type Projector struct {
	rows    Rows
	archive Archive
	sink    *sink.Sink[Fact]
	states  *states
	logger  *slog.Logger
	skipped prometheus.Counter

	partitions int
}

// Fact is a fact and the record it came in, of which Partition, Assignment and Time matter.
type Fact struct {
	Event events.Event
	At    kafka.Position
}

// New returns a projector of a log of facts with the given number of partitions, which keeps at most so many states
// in memory, and KeptBytes of them. Stop it in the end.
func New(r Rows, a Archive, partitions, keep int, logger *slog.Logger, registry prometheus.Registerer) (*Projector, error) {
	p := &Projector{rows: r, archive: a, partitions: partitions, states: newStates(keep, KeptBytes), logger: logger, skipped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "verbatim_projector_skipped_records_total", Help: "Records of the log of facts that are no event.",
	})}
	if err := registry.Register(p.skipped); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	watch, err := router.Watch(registry, "projector", events.TopicExecutions)
	if err != nil {
		return nil, err
	}
	p.sink = sink.New(sink.Config[Fact]{Limits: limits, Decode: p.decode, Store: p.Fold, Watch: watch})
	return p, nil
}

// Take folds messages until the channel is closed. Each is acknowledged when its row is stored.
func (p *Projector) Take(messages <-chan *message.Message) { p.sink.Run(messages) }

func (p *Projector) decode(m *message.Message) (Fact, bool) {
	e, err := codec.FromMessage(m)
	at, ok := kafka.PositionFromContext(m.Context())
	if err != nil || e.AboutExecution() != nil || !ok {
		p.skipped.Inc() // The recorder dead-letters it.
		return Fact{}, false
	}
	return Fact{e, at}, at.Partition == kafka.PartitionFor([]byte(e.Subject), p.partitions)
}

// Stop ends what is under way. Facts that were not stored stay unacknowledged.
func (p *Projector) Stop() { p.sink.Stop() }

// Fold applies a batch and stores every row that it changed. One at a time; Take calls it too.
func (p *Projector) Fold(ctx context.Context, facts []Fact) error {
	missing := p.states.assign(facts)
	if len(missing) > 0 {
		var loaded map[string]*execution.State
		err := retry.Until(ctx, p.logger, "load rows", func() (err error) {
			loaded, err = p.load(ctx, missing)
			return err
		})
		if err != nil {
			return err
		}
		p.states.put(missing, loaded)
	}
	for _, f := range facts {
		p.states.apply(f)
	}
	changed := p.states.changed()
	if len(changed) == 0 {
		p.states.stored()
		return nil
	}
	if err := retry.Until(ctx, p.logger, "store rows", func() error { return p.rows.InsertRows(ctx, changed) }); err != nil {
		return err
	}
	var deleted []string
	for _, s := range changed {
		if s.Deleted() {
			deleted = append(deleted, s.ID())
		}
	}
	if err := retry.Until(ctx, p.logger, "erase rows", func() error { return p.rows.EraseRows(ctx, deleted) }); err != nil {
		return err
	}
	p.states.stored()
	return nil
}
