package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// Bounds of a Filter.
const (
	DefaultLimit    = 100
	MaxLimit        = 1000
	maxFilterLabels = 32
)

// Filter narrows a list. The zero Filter lists the newest DefaultLimit executions.
type Filter struct {
	// Status is one of execution's; empty: any.
	Status string
	// Since leaves out executions whose id was made before it; zero: none.
	Since time.Time
	// Labels must all be there with these values.
	Labels map[string]string
	// Limit is at most MaxLimit; 0 is DefaultLimit.
	Limit int
	// Before leaves out this execution id and what is newer: the last id of one page asks for the next.
	Before string
}

// Validate reports everything that is wrong with the filter.
func (f Filter) Validate() error {
	var errs []error
	if f.Limit < 0 || f.Limit > MaxLimit {
		errs = append(errs, fmt.Errorf("limit is %d, it is from 1 to %d", f.Limit, MaxLimit))
	}
	if len(f.Labels) > maxFilterLabels {
		errs = append(errs, fmt.Errorf("there are %d labels, at most %d can be asked for", len(f.Labels), maxFilterLabels))
	}
	if _, err := dayOf(f.Before); f.Before != "" && err != nil {
		errs = append(errs, fmt.Errorf("before: %w", err))
	}
	return errors.Join(errs...)
}

// where is the condition on the executions, with its parameters.
func (f Filter) where() (string, []any) {
	conditions := []string{"created_day BETWEEN {from:Date} AND {to:Date}"}
	var args []any
	add := func(condition string, named ...any) {
		conditions = append(conditions, condition)
		args = append(args, named...)
	}
	if !f.Since.IsZero() {
		add("execution_id >= {since:String}", clickhouse.Named("since", events.FirstExecutionID(f.Since)))
	}
	if f.Before != "" {
		add("execution_id < {before:String}", clickhouse.Named("before", f.Before))
	}
	if f.Status != "" {
		add("status = {status:String}", clickhouse.Named("status", f.Status))
	}
	for i, key := range slices.Sorted(maps.Keys(f.Labels)) {
		k, v := "key"+strconv.Itoa(i), "value"+strconv.Itoa(i)
		add(fmt.Sprintf("mapContains(labels, {%s:String}) AND labels[{%s:String}] = {%s:String}", k, k, v),
			clickhouse.Named(k, key), clickhouse.Named(v, f.Labels[key]))
	}
	return strings.Join(conditions, "\n\tAND "), args
}

// listSQL first picks the ids, reading the few columns of the condition, then the rows of those ids.
func (f Filter) listSQL() (string, []any) {
	where, args := f.where()
	return `SELECT ` + list(readAs(listColumns)) + `
FROM executions FINAL
WHERE (created_day, execution_id) IN (
	SELECT created_day, execution_id
	FROM executions FINAL
	WHERE ` + where + `
	ORDER BY created_day DESC, execution_id DESC
	LIMIT {limit:UInt32}
)
ORDER BY created_day DESC, execution_id DESC` + final, args
}

// List returns rows, newest first by execution id. Their Stdout and Stderr are nil whatever there is: the
// previews are not read; ask Row for them.
func (s *Store) List(ctx context.Context, f Filter) ([]execution.Row, error) {
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("list executions: %w", err)
	}
	limit := f.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	days, err := s.days(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("list executions: %w", err)
	}
	query, args := f.listSQL()
	out := []execution.Row{}
	// The newest day mostly has enough. When it has not, go back in steps that double, so that neither a long history is read at
	// once nor many days cost many queries.
	for step := 1; len(days) > 0 && len(out) < limit; step *= 2 {
		n := min(step, len(days))
		rows, err := s.records(ctx, query, append(slices.Clone(args), clickhouse.Named("limit", limit-len(out)),
			clickhouse.Named("from", date(days[n-1])), clickhouse.Named("to", date(days[0])))...)
		if err != nil {
			return nil, fmt.Errorf("list executions: %w", err)
		}
		out = append(out, rows...)
		days = days[n:]
	}
	return out, nil
}

const daysSQL = `SELECT created_day
FROM executions
WHERE created_day BETWEEN {from:Date} AND {to:Date}
GROUP BY created_day
ORDER BY created_day DESC`

// days are the days that have rows within the filter's time, newest first.
func (s *Store) days(ctx context.Context, f Filter) (days []time.Time, err error) {
	from, to := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 12, 31, 0, 0, 0, 0, time.UTC)
	if f.Since.After(to) {
		return nil, nil
	}
	if f.Since.After(from) {
		from = f.Since.UTC()
	}
	if f.Before != "" {
		if to, err = dayOf(f.Before); err != nil {
			return nil, err
		}
	}
	rows, err := s.conn.Query(ctx, daysSQL, clickhouse.Named("from", date(from)), clickhouse.Named("to", date(to)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var day time.Time
		if err := rows.Scan(&day); err != nil {
			return nil, err
		}
		days = append(days, day)
	}
	return days, rows.Err()
}
