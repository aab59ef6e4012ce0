package replay

import (
	"context"
	"fmt"
	"time"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// quietLooks is how often the old table must have nothing new, quietTime apart: a projector that was about to store rows when the
// tables were exchanged stores them in the old one.
const (
	quietLooks = 2
	quietTime  = time.Second
)

// Swap makes the rebuilt table the live one. Executions of which the old one knows more, because facts came since, are folded
// again from the archive; when the archive is behind the old row too, its state is taken over. They are counted. Most of that happens
// before the exchange, so that a projector meets a row that knows too little for a moment only.
//
// After an error rows of the live table may know less than those of the other one; another replay puts them right once the
// recorder has caught up.
func Swap(ctx context.Context, s *clickhouse.Store, h *clickhouse.Shadow) (carried int, err error) {
	return swap(ctx, s, h, func(ctx context.Context) error {
		select {
		case <-time.After(quietTime):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

func swap(ctx context.Context, s *clickhouse.Store, h *clickhouse.Shadow, wait func(context.Context) error) (carried int, err error) {
	c := carrier{archive: s, versions: map[string]uint64{}}
	behind, err := h.Behind(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := c.carry(ctx, behind, s, h); err != nil {
		return 0, err
	}
	if err := h.Swap(ctx); err != nil {
		return 0, err
	}
	for quiet := 0; ; {
		newer, err := h.Newer(ctx)
		if err != nil {
			return len(c.versions), err
		}
		n, err := c.carry(ctx, newer, h, s)
		if err != nil {
			return len(c.versions), err
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		if quiet == quietLooks {
			return len(c.versions), nil
		}
		if err := wait(ctx); err != nil {
			return len(c.versions), err
		}
	}
}

// rows is a table of rows: the live one or a shadow.
type rows interface {
	LoadStates(ctx context.Context, ids []string) (map[string]*execution.State, error)
	InsertRows(ctx context.Context, states []*execution.State) error
	EraseRows(ctx context.Context, ids []string) error
}

// carrier brings executions up to a version that another table has.
type carrier struct {
	archive  *clickhouse.Store
	versions map[string]uint64 // those that were brought so far
}

// carry brings executions up to the versions that they have in from, and returns how many it had not brought so far already.
func (c *carrier) carry(ctx context.Context, versions map[string]uint64, from, to rows) (carried int, err error) {
	for id, version := range versions {
		if c.versions[id] >= version {
			continue
		}
		state, err := c.state(ctx, id, version, from)
		if err != nil {
			return carried, err
		}
		if state == nil {
			continue
		}
		if err := to.InsertRows(ctx, []*execution.State{state}); err != nil {
			return carried, err
		}
		if state.Deleted() {
			if err := to.EraseRows(ctx, []string{id}); err != nil {
				return carried, err
			}
		}
		c.versions[id] = version
		carried++
	}
	return carried, nil
}

// state is an execution folded from the archive, or what the table has of it when that is more; nil when the table has nothing any more.
func (c *carrier) state(ctx context.Context, id string, version uint64, from rows) (*execution.State, error) {
	state := execution.New(id)
	for f, err := range Archive(c.archive, Filter{Execution: id}).Facts(ctx, nil) {
		if err != nil {
			return nil, err
		}
		state.Apply(f.Event, f.ReceivedAt)
	}
	if state.Version() >= version {
		return state, nil
	}
	stored, err := from.LoadStates(ctx, []string{id})
	if err != nil {
		return nil, fmt.Errorf("the archive has %d of the %d facts of %s so far: %w", state.Version(), version, id, err)
	}
	return stored[id], nil
}
