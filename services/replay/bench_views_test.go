//go:build benchprojector

package replay_test

import (
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestBenchViews(t *testing.T) {
	b := newBench(t)
	db := b.db()
	defer db.Close()
	rows := number("VERBATIM_BENCH_ROWS", 10_000_000)
	const days = 30
	for day := range days { // A day is a partition; a query has a time limit.
		_, err := db.ExecContext(t.Context(), fmt.Sprintf(`INSERT INTO executions (created_day, execution_id, status, succeeded, exit_code, error, error_source, reason, action,
	requested_at, started_at, ended_at, duration_ms, user_ms, system_ms, runner, attempt, sealed, complete, version, max_resident_bytes, stdout)
SELECT toDate('2026-11-01') + %d, concat('019366e0-7c00-7000-%%03d-', leftPad(toString(number), 12, '0')), if(number %% 10 = 0, 'failed', 'succeeded'), number %% 10 != 0,
	if(number %% 10 = 0, 1, 0), if(number %% 10 = 0, concat('error number ', toString(number %% 50)), NULL), if(number %% 10 = 0, 'stderr', NULL), if(number %% 10 = 0, 'exit_code', NULL),
	concat('action', toString(number %% 20)), toDateTime64(toDate('2026-11-01') + %d, 9, 'UTC') + number %% 86400 AS at, at, at + 5, number %% 60000, number %% 1000, number %% 100,
	concat('runner', toString(number %% 16)), 1, true, number %% 1000 != 1, 7, 1048576, 'some output of it'
FROM numbers(%d)`, day, day, rows/days))
		must(t, err)
	}
	b.fill(shapes()[0], 0, 20, true)
	b.settle()
	for _, view := range []struct{ name, query string }{
		{"current_executions", "SELECT status, count() FROM current_executions WHERE created_day = '2026-11-10' GROUP BY status"},
		{"outcomes_by_hour", "SELECT * FROM outcomes_by_hour WHERE created_day = '2026-11-10'"},
		{"failure_reasons", "SELECT * FROM failure_reasons WHERE created_day = '2026-11-10' ORDER BY executions DESC LIMIT 20"},
		{"runner_utilisation", "SELECT * FROM runner_utilisation WHERE created_day = '2026-11-10'"},
		{"incomplete_executions", "SELECT * FROM incomplete_executions WHERE created_day = '2026-11-10' LIMIT 100"},
		{"output_lines", "SELECT * FROM output_lines WHERE execution_id = '019366e0-7c03-7000-8000-000000000003'"},
		{"attempts", "SELECT * FROM attempts WHERE execution_id = '019366e0-7c03-7000-8000-000000000003'"},
		{"search", "SELECT execution_id, output_offset FROM events WHERE hasAllTokens(lower(output), tokens('worker 99', 'splitByNonAlpha')) LIMIT 100"},
	} {
		var times []time.Duration
		for i := range 21 {
			began := time.Now()
			drain(t, db, view.query)
			if i > 0 {
				times = append(times, time.Since(began))
			}
		}
		slices.Sort(times)
		fmt.Printf("view         %-22s p50 %4d ms  p95 %4d ms  rows read %s\n", view.name, times[len(times)/2].Milliseconds(), times[len(times)*95/100].Milliseconds(), estimate(t, db, view.query))
	}
	var total uint64
	must(t, db.QueryRowContext(t.Context(), "SELECT count() FROM executions").Scan(&total))
	fmt.Printf("view         over %d rows in %d days, on %s\n", total, days, machine())
}

func drain(t *testing.T, db *sql.DB, query string) {
	rows, err := db.QueryContext(t.Context(), query)
	must(t, err)
	for rows.Next() { //nolint:revive // Only the time counts.
	}
	must(t, rows.Err())
	must(t, rows.Close())
}

func estimate(t *testing.T, db *sql.DB, query string) string {
	var database, table string
	var parts, rows, marks uint64
	if err := db.QueryRowContext(t.Context(), "EXPLAIN ESTIMATE "+query).Scan(&database, &table, &parts, &rows, &marks); err != nil {
		return "not known: " + err.Error()
	}
	return fmt.Sprint(rows)
}
