package recorder

import (
	"context"
	"slices"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/internal/retry"
)

// lookEvery is how often late facts of deleted executions are looked for.
const lookEvery = 10 * time.Minute

// erase removes what the archive has of executions that were deleted: those that the facts say it of, and now and then all, since
// facts may come after that. It comes before the facts' offsets are committed: after a crash it is done again.
func (r *Recorder) erase(ctx context.Context, facts []clickhouse.ArchivedEvent) error {
	var ids []string
	for _, f := range facts {
		if f.Event.Type == events.TypeExecutionDeleted {
			ids = append(ids, f.Event.Subject)
		}
	}
	look := time.Since(r.looked) >= lookEvery
	if len(ids) == 0 && !look {
		return nil
	}
	err := retry.Until(ctx, r.logger, "erase deleted executions", func() error {
		var late []string
		if look {
			var err error
			if late, err = r.archive.Deleted(ctx); err != nil {
				return err
			}
		}
		return r.archive.EraseEvents(ctx, slices.Concat(ids, late))
	})
	if err == nil && look {
		r.looked = time.Now()
	}
	return err
}
