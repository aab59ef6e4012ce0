package replay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/projector"
)

var errStopped = errors.New("stopped")

// Config says what is replayed into what.
type Config struct {
	Source Source
	Filter Filter
	Store  *clickhouse.Store
	Into   *clickhouse.Shadow
	// Restart begins anew where an unfinished replay could go on.
	Restart bool
	// Keep is how many states stay in memory, as far as there is room (projector.KeptBytes). 0 is 5,000. Of a source that is grouped
	// none is needed.
	Keep int
	// Batch is how many facts are folded and stored at once. 0 is 20,000.
	Batch int
	// SaveEvery is how often the position is saved. 0 is 2 s, negative: after every batch.
	SaveEvery time.Duration
	// Progress, if not nil, is called after every batch.
	Progress func(Progress)
	Logger   *slog.Logger
}

// Progress is how far a replay is.
type Progress struct {
	// Done and Total are in Unit (facts, records, bytes). Total is 0 when it is not known.
	Done, Total uint64
	Unit        string
	// Facts is how many facts were folded since the start or the resumption.
	Facts uint64
}

// Result is what a replay did.
type Result struct {
	// Facts is how many facts were folded, over all resumptions.
	Facts   uint64 `json:"facts"`
	Resumed bool   `json:"resumed"`
	// Partial says that the filter left something out.
	Partial bool `json:"partial"`
}

// saved is the position as it lies beside the shadow table.
type saved struct {
	Source   string          `json:"source"`
	Filter   Filter          `json:"filter"`
	At       json.RawMessage `json:"at,omitempty"`
	Facts    uint64          `json:"facts"`
	Finished bool            `json:"finished"`
}

// Defaults. A batch also ends with so many bytes.
const (
	defaultBatch = 20_000
	batchBytes   = 32 << 20
	defaultSave  = 2 * time.Second
	defaultKeep  = 5_000
)

// run is one replay.
type run struct {
	Config
	projector *projector.Projector
	state     saved
	rows      *freshRows
	total     uint64
	unit      string
	folded    uint64
	savedAt   time.Time
}

// Run replays until the source's end. When the context ends first, the next Run with the same source, filter and table goes on.
func Run(ctx context.Context, c Config) (Result, error) {
	if err := c.Filter.Validate(); err != nil {
		return Result{}, err
	}
	if c.Keep = cmp.Or(c.Keep, defaultKeep); c.Source.Grouped() {
		c.Keep = 1 // The execution that goes on in the next batch.
	}
	c.Batch = cmp.Or(c.Batch, defaultBatch)
	c.SaveEvery = cmp.Or(c.SaveEvery, defaultSave)
	r := &run{Config: c}
	resumed, err := r.begin(ctx)
	if err != nil {
		return Result{}, err
	}
	r.rows = &freshRows{Shadow: c.Into, grouped: c.Source.Grouped(), fresh: !resumed, stored: map[string]struct{}{}}
	r.projector, err = projector.New(r.rows, c.Store, 1, c.Keep, c.Logger, prometheus.NewRegistry())
	if err != nil {
		return Result{}, err
	}
	defer r.projector.Stop()
	if r.total, r.unit, err = c.Source.Total(ctx, r.state.At); err != nil {
		return Result{}, fmt.Errorf("measure %s: %w", c.Source.Name(), err)
	}
	if err := r.fold(ctx); err != nil {
		return Result{}, err
	}
	r.state.Finished = true
	if err := r.save(ctx); err != nil {
		return Result{}, err
	}
	return Result{Facts: r.state.Facts, Resumed: resumed, Partial: c.Filter.partial()}, nil
}

// begin finds out whether an earlier replay can go on, and makes the table when not.
func (r *run) begin(ctx context.Context) (resumed bool, err error) {
	position, err := r.Into.Position(ctx)
	if err != nil {
		return false, err
	}
	fresh := saved{Source: r.Source.Name(), Filter: r.Filter}
	if position != nil && !r.Restart {
		var old saved
		if err := json.Unmarshal(position, &old); err != nil {
			return false, fmt.Errorf("read the position of %s: %w", r.Into.Name(), err)
		}
		switch {
		case old.Finished:
		case old.Source != fresh.Source || old.Filter != fresh.Filter:
			return false, fmt.Errorf("table %s holds an unfinished replay of something else (%s): finish that one, name another table, or begin anew with --restart", r.Into.Name(), old.Source)
		default:
			r.state = old
			return true, nil
		}
	}
	r.state = fresh
	text, err := json.Marshal(fresh)
	if err != nil {
		return false, err
	}
	return false, r.Into.Make(ctx, text)
}

func (r *run) fold(ctx context.Context) error {
	var batch []projector.Fact
	bytes := 0
	flush := func() error {
		if err := r.projector.Fold(ctx, batch); err != nil {
			return err
		}
		r.folded += uint64(len(batch))
		r.state.Facts += uint64(len(batch))
		batch, bytes = batch[:0], 0
		var done uint64
		r.state.At, done = r.Source.Position()
		if r.Progress != nil {
			r.Progress(Progress{Done: done, Total: r.total, Unit: r.unit, Facts: r.folded})
		}
		if time.Since(r.savedAt) < r.SaveEvery {
			return nil
		}
		return r.save(ctx)
	}
	for f, err := range r.Source.Facts(ctx, r.state.At) {
		if err != nil {
			return err
		}
		if !r.Filter.Takes(f) {
			continue
		}
		batch = append(batch, projector.Fact{Event: f.Event, At: kafka.Position{Time: f.ReceivedAt, Assignment: 1}})
		if bytes += len(f.Event.Payload) + 256; len(batch) >= r.Batch || bytes >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (r *run) save(ctx context.Context) error {
	text, err := json.Marshal(r.state)
	if err != nil {
		return err
	}
	r.savedAt = time.Now()
	return r.Into.SavePosition(ctx, text)
}

// freshRows spares the question for rows that nobody needs: those of a table that was empty at the start and has none of them yet, and
// those of executions that the source tells of whole.
type freshRows struct {
	*clickhouse.Shadow
	grouped bool
	fresh   bool
	stored  map[string]struct{} // 16 bytes of each id that was stored
}

// maxStored bounds the memory of what was stored, some 100 MB.
const maxStored = 1_000_000

func short(id string) string { return id[max(0, len(id)-16):] }

func (f *freshRows) LoadStates(ctx context.Context, ids []string) (map[string]*execution.State, error) {
	if f.grouped {
		return map[string]*execution.State{}, nil
	}
	if f.fresh {
		known := ids[:0:0]
		for _, id := range ids {
			if _, ok := f.stored[short(id)]; ok {
				known = append(known, id)
			}
		}
		ids = known
	}
	if len(ids) == 0 {
		return map[string]*execution.State{}, nil
	}
	return f.Shadow.LoadStates(ctx, ids)
}

func (f *freshRows) InsertRows(ctx context.Context, states []*execution.State) error {
	if f.fresh && !f.grouped {
		for _, s := range states {
			f.stored[short(s.ID())] = struct{}{}
		}
		if len(f.stored) > maxStored {
			f.fresh, f.stored = false, nil // From here on the table is asked.
		}
	}
	return f.Shadow.InsertRows(ctx, states)
}
