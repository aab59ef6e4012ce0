package files

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/services/artifact"
)

// Ledger keeps which days' artifacts are removed.
type Ledger interface {
	// ArtifactsRemoved notes that no row may name an artifact of a day any more. Noting it twice changes nothing.
	ArtifactsRemoved(ctx context.Context, day time.Time) error
}

// Retention removes the artifacts of days that are over. A day is that of the execution's id, whenever the artifact was made. What is not named as
// artifacts are is never touched, whoever put it there.
//
// It needs no memory: the days that there are objects of are listed, those that are over are noted in the ledger, and their objects are removed.
// Killed anywhere in between, the rest goes the next time. Doing it twice at once does no harm; that one recorder does it is to save the work.
type Retention struct {
	store   *artifact.Store
	ledger  Ledger
	days    uint
	logger  *slog.Logger
	removed prometheus.Counter
}

// NewRetention returns one that keeps artifacts for so many days, from the day of the request on.
func NewRetention(store *artifact.Store, ledger Ledger, days uint, logger *slog.Logger, registry prometheus.Registerer) (*Retention, error) {
	r := &Retention{store: store, ledger: ledger, days: days, logger: logger, removed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "verbatim_recorder_artifacts_removed_total", Help: "Objects that retention removed.",
	})}
	if err := registry.Register(r.removed); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return r, nil
}

// lookEvery is the pause between two looks for days that are over.
const lookEvery = time.Hour

// removeAtOnce is how many objects are listed before they are removed.
const removeAtOnce = 1000

// Over tells a day of which nothing is kept any more. It is the day on which ClickHouse's tables with the same number of days drop it.
func Over(day, now time.Time, days uint) bool {
	return !day.AddDate(0, 0, int(days)+1).After(now)
}

// Run looks until the context ends.
func (r *Retention) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if removed, err := r.Once(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.logger.ErrorContext(ctx, "retention cannot remove artifacts, it is tried again", "removed", removed, "next_try_in", lookEvery, "error", err)
		} else if removed > 0 {
			r.logger.InfoContext(ctx, "retention removed artifacts", "objects", removed, "kept_days", r.days)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Once removes what is over at a time, and says how many objects that were.
func (r *Retention) Once(ctx context.Context, now time.Time) (removed int, err error) {
	days, err := r.store.Days(ctx)
	if err != nil {
		return 0, err
	}
	for _, day := range days {
		if !Over(day, now, r.days) {
			continue
		}
		n, err := r.remove(ctx, day)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("remove the artifacts of %s: %w", day.Format(time.DateOnly), err)
		}
	}
	return removed, nil
}

var errEnough = errors.New("enough for now")

func (r *Retention) remove(ctx context.Context, day time.Time) (removed int, err error) {
	for {
		var keys []string
		err := r.store.ListDay(ctx, day, func(o artifact.Object) error {
			if keys = append(keys, o.Key); len(keys) == removeAtOnce {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) || len(keys) == 0 {
			return removed, err
		}
		if removed == 0 { // Before the first one goes: no row names what is not there.
			if err := r.ledger.ArtifactsRemoved(ctx, day); err != nil {
				return 0, err
			}
		}
		if err := r.store.Delete(ctx, keys...); err != nil {
			return removed, err
		}
		removed += len(keys)
		r.removed.Add(float64(len(keys)))
	}
}
