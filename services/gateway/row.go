package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/barrier"
)

// How long reads wait for the services that store what they read, unless they say it themselves (Preference).
const (
	rowBudget   = 2 * time.Second
	listBudget  = time.Second
	bytesBudget = 30 * time.Second
	// An execution younger than this may be on its way through the preparer, and is waited for.
	youngAge    = 5 * time.Second
	youngBudget = 3 * time.Second
)

// Values of api.HeaderStale.
const (
	staleProjector = "projector"
	staleRecorder  = "recorder"
)

type rowInput struct {
	Preference
	ID string `path:"id" doc:"The execution's id."`
}

type rowOutput struct {
	Stale string `header:"Verbatim-Stale"`
	Body  execution.Row
}

func (g *Gateway) get(ctx context.Context, in *rowInput) (*rowOutput, error) {
	row, stale, err := g.row(ctx, in.ID, in.wait(rowBudget))
	if err != nil {
		return nil, err
	}
	return &rowOutput{Stale: stale, Body: row}, nil
}

// row returns an execution's row as of now, and who is late if somebody is after the budget.
func (g *Gateway) row(ctx context.Context, id string, budget time.Duration) (row execution.Row, stale string, err error) {
	made, err := events.ParseExecutionID(id)
	if err != nil {
		return execution.Row{}, "", problem(http.StatusUnprocessableEntity, err.Error(), fault("path.id", "an execution id is a UUIDv7 in lower-case text form"))
	}
	row, found, err := g.stored(ctx, id)
	if err != nil || found && row.Sealed {
		return row, "", err
	}
	if !g.projector.Wait(ctx, g.partition(id), budget) {
		stale = g.late(staleProjector)
	}
	if row, found, err = g.stored(ctx, id); err != nil || found {
		return row, stale, err
	}
	if row, found := g.accepted.get(id); found {
		return row, stale, nil
	}
	if age := time.Since(made); age < youngAge && age > -maxAhead {
		if row, found, err = g.young(ctx, id); err != nil || found {
			return row, stale, err
		}
	}
	return execution.Row{}, "", problem(http.StatusNotFound, fmt.Sprintf("no execution %s is known", id))
}

// gone is the answer when there is nothing to read of an execution, since it was deleted; else nil.
func gone(row execution.Row) error {
	if row.Status != execution.StatusDeleted {
		return nil
	}
	return problem(http.StatusGone, fmt.Sprintf("execution %s was %s", row.ExecutionID, *row.Error))
}

// young waits for an execution that another gateway may have accepted a moment ago.
func (g *Gateway) young(ctx context.Context, id string) (execution.Row, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, youngBudget)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		select {
		case <-ctx.Done():
			return execution.Row{}, false, nil
		case <-time.After(pause):
		}
		row, found, err := g.stored(ctx, id)
		if found || err != nil && ctx.Err() == nil {
			return row, found, err
		}
	}
}

func (g *Gateway) stored(ctx context.Context, id string) (execution.Row, bool, error) {
	row, err := g.d.Rows.Row(ctx, id)
	switch {
	case errors.Is(err, clickhouse.ErrNotFound):
		return execution.Row{}, false, nil
	case err != nil:
		return execution.Row{}, false, g.unavailable(ctx, "the row cannot be read: the database does not answer", err)
	}
	return row, true, nil
}

// late counts an answer that somebody was too late for, and returns his name.
func (g *Gateway) late(service string) string {
	g.metrics.stale.WithLabelValues(service).Inc()
	return service
}

const (
	defaultLimit = 50
	maxLimit     = clickhouse.MaxLimit
)

type listInput struct {
	Preference
	Status string   `query:"status" doc:"requested, prepared, running, succeeded, failed, timeout, cancelled or lost."`
	Since  string   `query:"since" doc:"Only executions requested since: how long ago (a Go duration, 1h30m) or a time (RFC 3339)."`
	Label  []string `query:"label,explode" doc:"name=value, may be given several times; all must match."`
	Limit  int      `query:"limit" doc:"Rows of one page, 1 to 1000. Default 50."`
	Before string   `query:"before" doc:"Go on after this execution id: next of the page before."`
}

type listOutput struct {
	Stale string `header:"Verbatim-Stale"`
	Body  api.ListResponse
}

func (g *Gateway) list(ctx context.Context, in *listInput) (*listOutput, error) {
	f, err := filter(in)
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	if !g.projector.Wait(ctx, barrier.AllPartitions, in.wait(listBudget)) {
		out.Stale = g.late(staleProjector)
	}
	limit := f.Limit
	f.Limit = min(limit+1, clickhouse.MaxLimit) // One more tells whether there is a next page.
	rows, err := g.d.Rows.List(ctx, f)
	if err != nil {
		return nil, g.unavailable(ctx, "the rows cannot be read: the database does not answer", err)
	}
	if len(rows) > limit || len(rows) == clickhouse.MaxLimit {
		rows = rows[:limit]
		out.Body.Next = rows[limit-1].ExecutionID
	}
	out.Body.Executions = append([]execution.Row{}, rows...)
	return out, nil
}

var statuses = []string{
	execution.StatusRequested, execution.StatusPrepared, execution.StatusRunning, execution.StatusRetrying, execution.StatusSucceeded,
	execution.StatusFailed, execution.StatusTimeout, execution.StatusCancelled, execution.StatusLost, execution.StatusDeleted,
}

func filter(in *listInput) (clickhouse.Filter, error) {
	v := &validation{}
	f := clickhouse.Filter{Status: in.Status, Limit: in.Limit, Before: in.Before, Labels: map[string]string{}}
	if in.Status != "" && !slices.Contains(statuses, in.Status) {
		v.bad("query.status", "is none of "+strings.Join(statuses, ", "))
	}
	if in.Since != "" {
		var err error
		if f.Since, err = since(in.Since, time.Now()); err != nil {
			v.bad("query.since", err.Error())
		}
	}
	for _, l := range in.Label {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" {
			v.bad("query.label", "is not name=value")
		}
		if other, twice := f.Labels[name]; twice && other != value {
			v.bad("query.label", "asks for two values of one label")
		}
		f.Labels[name] = value
	}
	switch {
	case f.Limit == 0:
		f.Limit = defaultLimit
	case f.Limit < 0 || f.Limit > maxLimit:
		v.bad("query.limit", fmt.Sprintf("is not 1 to %d", maxLimit))
	}
	if in.Before != "" {
		if _, err := events.ParseExecutionID(in.Before); err != nil {
			v.bad("query.before", "is no execution id")
		}
	}
	if err := f.Validate(); err != nil && len(v.faults) == 0 {
		v.bad("query", err.Error())
	}
	if len(v.faults) > 0 {
		return f, problem(http.StatusUnprocessableEntity, "the executions cannot be listed so", v.faults...)
	}
	return f, nil
}

func since(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		if d < 0 {
			return time.Time{}, errors.New("is in the future")
		}
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, errors.New("is neither a duration like 1h30m nor a time like 2026-11-25T12:00:00Z")
	}
	return t, nil
}
