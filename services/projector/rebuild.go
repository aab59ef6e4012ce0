package projector

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// Archive is what a state is rebuilt from when the one in its row cannot be read: written by a newer program, or
// damaged.
type Archive interface {
	// Row returns an execution's row, or clickhouse.ErrNotFound.
	Row(ctx context.Context, id string) (execution.Row, error)
	// Events yields an execution's archived events after a Kafka offset, -1 for all. An error comes last.
	Events(ctx context.Context, id string, afterOffset int64) iter.Seq2[clickhouse.ArchivedEvent, error]
}

// load returns the states of the ids that have a row. States that cannot be read are rebuilt from the archive.
func (p *Projector) load(ctx context.Context, ids []string) (map[string]*execution.State, error) {
	loaded, err := p.rows.LoadStates(ctx, ids)
	if !errors.Is(err, execution.ErrState) {
		return loaded, err
	}
	p.logger.ErrorContext(ctx, "states cannot be read and are rebuilt from the archive", "error", err)
	for _, id := range ids {
		if loaded[id] == nil {
			if loaded[id], err = p.rebuild(ctx, id); err != nil {
				return nil, err
			}
		}
	}
	return loaded, nil
}

// rebuild folds an execution's archived facts. An archive that has less than the row is behind: that is an error, which
// is tried again.
func (p *Projector) rebuild(ctx context.Context, id string) (*execution.State, error) {
	state := execution.New(id)
	row, err := p.archive.Row(ctx, id)
	if errors.Is(err, clickhouse.ErrNotFound) {
		return state, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rebuild state of %s: %w", id, err)
	}
	for e, err := range p.archive.Events(ctx, id, -1) {
		if err != nil {
			return nil, fmt.Errorf("rebuild state of %s: %w", id, err)
		}
		if e.Topic == events.TopicExecutions {
			state.Apply(e.Event, e.ReceivedAt)
		}
	}
	if state.Version() < row.Version {
		return nil, fmt.Errorf("rebuild state of %s: the archive has %d of its %d facts so far", id, state.Version(), row.Version)
	}
	return state, nil
}
