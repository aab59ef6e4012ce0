package clickhouse

import (
	"context"
	"fmt"
	"slices"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// Erasing rewrites the parts that hold what goes, and waits for it: afterwards it is on no disk of the server's any more, but for
// old parts, which the server removes within minutes (old_parts_lifetime).
const (
	eraseEventsSQL = `ALTER TABLE events DELETE
WHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)} AND type != {kept:String}
SETTINGS mutations_sync = 2`
	// For a table of this package's naming.
	eraseRowsSQL = `ALTER TABLE %s DELETE
WHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)} AND status != {kept:String}
SETTINGS mutations_sync = 2`
	deletedSQL = `SELECT execution_id
FROM events
WHERE execution_id IN (SELECT execution_id FROM events WHERE type = {deleted:String})
GROUP BY execution_id
HAVING countIf(type != {deleted:String}) > 0
ORDER BY execution_id`
	shadowsSQL = `SELECT name FROM system.tables
WHERE database = currentDatabase() AND name IN (SELECT shadow FROM replays FINAL) ORDER BY name`
	remainsSQL = `SELECT count() FROM %s WHERE created_day = {day:Date} AND execution_id = {id:String} AND %s != {kept:String}`
)

// EraseEvents removes executions' archived events, but for those that say that it was deleted.
func (s *Store) EraseEvents(ctx context.Context, ids []string) error {
	return s.erase(ctx, "events", eraseEventsSQL, events.TypeExecutionDeleted, ids)
}

// EraseRows removes every version of executions' rows but the one that says that it was deleted, also from the tables of replays.
func (s *Store) EraseRows(ctx context.Context, ids []string) error {
	tables, err := s.rowTables(ctx)
	if err != nil {
		return err
	}
	for _, table := range tables {
		if err := s.erase(ctx, table, fmt.Sprintf(eraseRowsSQL, table), execution.StatusDeleted, ids); err != nil {
			return err
		}
	}
	return nil
}

// erasedAtOnce bounds the ids of one statement: they are one parameter of its URL, which a server takes up to http_max_field_value_size
// of (128 KiB by default), some 2,900 ids as they stand in a URL.
const erasedAtOnce = 1000

func (s *Store) erase(ctx context.Context, table, query, kept string, ids []string) error {
	ids = slices.Compact(slices.Sorted(slices.Values(ids))) // Those of a day are made beside each other, and stand so.
	for part := range slices.Chunk(ids, erasedAtOnce) {
		days, err := daysOf(part)
		if err == nil {
			err = s.conn.Exec(ctx, query, clickhouse.Named("days", days), clickhouse.Named("ids", part), clickhouse.Named("kept", kept))
		}
		if err != nil {
			return fmt.Errorf("erase from %s: %w", table, err)
		}
	}
	return nil
}

// rowTables are executions and the tables of replays.
func (s *Store) rowTables(ctx context.Context) ([]string, error) {
	shadows, err := s.texts(ctx, shadowsSQL)
	if err != nil {
		return nil, fmt.Errorf("list the tables of replays: %w", err)
	}
	return append([]string{"executions"}, shadows...), nil
}

// Deleted lists executions that were deleted and of which the archive has events yet: late ones.
func (s *Store) Deleted(ctx context.Context) ([]string, error) {
	ids, err := s.texts(ctx, deletedSQL, clickhouse.Named("deleted", events.TypeExecutionDeleted))
	if err != nil {
		return nil, fmt.Errorf("look for events of deleted executions: %w", err)
	}
	return ids, nil
}

// Remains counts what there is of an execution: versions of its row in any table, and archived events; what says that it was
// deleted does not count.
func (s *Store) Remains(ctx context.Context, id string) (rows, archived uint64, err error) {
	day, err := dayOf(id)
	if err != nil {
		return 0, 0, fmt.Errorf("count what remains: %w", err)
	}
	tables, err := s.rowTables(ctx)
	if err != nil {
		return 0, 0, err
	}
	count := func(table, column, kept string) (n uint64, err error) {
		err = s.conn.QueryRow(ctx, fmt.Sprintf(remainsSQL, table, column),
			clickhouse.Named("day", date(day)), clickhouse.Named("id", id), clickhouse.Named("kept", kept)).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("count what remains in %s: %w", table, err)
		}
		return n, nil
	}
	for _, table := range tables {
		n, err := count(table, "status", execution.StatusDeleted)
		if err != nil {
			return 0, 0, err
		}
		rows += n
	}
	archived, err = count("events", "type", events.TypeExecutionDeleted)
	return rows, archived, err
}

func (s *Store) texts(ctx context.Context, query string, args ...any) (out []string, err error) {
	rows, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := rows.Close(); err == nil {
			err = closed
		}
	}()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, rows.Err()
}
