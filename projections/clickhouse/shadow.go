package clickhouse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/projections/execution"
)

// Shadow is a table like executions, in which rows are rebuilt beside the live ones. It is safe for concurrent use.
type Shadow struct {
	store *Store
	table string
}

// ErrNoShadow says that a table is there and is none of Shadow's.
var ErrNoShadow = errors.New("table is not made by a replay")

var shadowName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// Shadow returns the shadow table of that name, whether it exists or not.
func (s *Store) Shadow(table string) (*Shadow, error) {
	if !shadowName.MatchString(table) {
		return nil, fmt.Errorf("%q is no name for a table: letters, digits and _, at most 64", table)
	}
	if slices.Contains([]string{"executions", "events", "replays", schemaTable}, table) {
		return nil, fmt.Errorf("table %s is not for rebuilding: name another one", table)
	}
	return &Shadow{s, table}, nil
}

// Name is the table's.
func (h *Shadow) Name() string { return h.table }

// Make makes the table anew, empty. Of a table that no replay made it is ErrNoShadow.
func (h *Shadow) Make(ctx context.Context, position []byte) error {
	if _, err := h.Position(ctx); err != nil {
		return err
	}
	if err := h.Drop(ctx); err != nil {
		return err
	}
	// The position comes first: a table without one would be nobody's.
	if err := h.SavePosition(ctx, position); err != nil {
		return err
	}
	if err := h.store.conn.Exec(ctx, h.definition()); err != nil {
		return fmt.Errorf("make table %s: %w", h.table, err)
	}
	return nil
}

// definition makes the table. On a cluster the engine is said again, so that it is not taken over with its place in Keeper.
func (h *Shadow) definition() string {
	sql := "CREATE TABLE " + h.table + h.store.cluster.on() + " AS executions"
	if h.store.cluster == "" {
		return sql
	}
	return sql + h.store.cluster.rewrite(`
ENGINE = ReplacingMergeTree(version)
PARTITION BY created_day
ORDER BY (created_day, execution_id)
SETTINGS index_granularity = 1024, min_bytes_for_wide_part = 268435456`)
}

// Drop removes the table.
func (h *Shadow) Drop(ctx context.Context) error {
	if err := h.store.conn.Exec(ctx, "DROP TABLE IF EXISTS "+h.table+h.store.cluster.on()+" SYNC"); err != nil {
		return fmt.Errorf("drop table %s: %w", h.table, err)
	}
	h.store.mu.Lock()
	delete(h.store.columns, h.table)
	h.store.mu.Unlock()
	return nil
}

// Position returns what SavePosition saved last; nil when there is no table.
func (h *Shadow) Position(ctx context.Context) ([]byte, error) {
	var tables uint64
	err := h.store.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", h.table)).Scan(&tables)
	if err != nil {
		return nil, fmt.Errorf("look for table %s: %w", h.table, err)
	}
	if tables == 0 {
		return nil, nil
	}
	var position string
	var rows uint64
	err = h.store.conn.QueryRow(ctx, "SELECT count(), any(position) FROM replays FINAL WHERE shadow = {table:String}",
		clickhouse.Named("table", h.table)).Scan(&rows, &position)
	if err != nil {
		return nil, fmt.Errorf("read position of %s: %w", h.table, err)
	}
	if rows == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoShadow, h.table)
	}
	return []byte(position), nil
}

// SavePosition notes how far the replay is. It comes after the rows up to there.
func (h *Shadow) SavePosition(ctx context.Context, position []byte) error {
	batch, err := h.store.insert(ctx, "replays", []string{"shadow", "position", "saved_at"})
	if err != nil {
		return fmt.Errorf("save position of %s: %w", h.table, err)
	}
	defer func() { _ = batch.Close() }()
	if err := batch.Append(h.table, string(position), time.Now().UTC()); err != nil {
		return fmt.Errorf("save position of %s: %w", h.table, err)
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("save position of %s: %w", h.table, err)
	}
	return nil
}

// InsertRows is Store.InsertRows for this table.
func (h *Shadow) InsertRows(ctx context.Context, states []*execution.State) error {
	return h.store.insertRows(ctx, h.table, states)
}

// EraseRows is Store.EraseRows for this table alone.
func (h *Shadow) EraseRows(ctx context.Context, ids []string) error {
	return h.store.erase(ctx, h.table, fmt.Sprintf(eraseRowsSQL, h.table), execution.StatusDeleted, ids)
}

// LoadStates is Store.LoadStates for this table.
func (h *Shadow) LoadStates(ctx context.Context, ids []string) (map[string]*execution.State, error) {
	return h.store.statesOf(ctx, h.table, ids)
}

// Row is Store.Row for this table.
func (h *Shadow) Row(ctx context.Context, id string) (execution.Row, error) {
	return h.store.row(ctx, h.table, id)
}

// Swap makes the table the live one, and the live one this table, at once. Projectors go on meanwhile, so afterwards Newer
// tells of which executions the old table knows more.
func (h *Shadow) Swap(ctx context.Context) error {
	if err := h.store.conn.Exec(ctx, "EXCHANGE TABLES executions AND "+h.table+h.store.cluster.on()); err != nil {
		return fmt.Errorf("swap executions and %s: %w", h.table, err)
	}
	return nil
}

// Newer returns the executions of which this table has a row with a greater version than the live one, and that version.
func (h *Shadow) Newer(ctx context.Context) (versions map[string]uint64, err error) {
	return h.store.newer(ctx, h.table, "executions")
}

// Behind returns the executions of which the live table has a row with a greater version than this one, and that version.
func (h *Shadow) Behind(ctx context.Context) (versions map[string]uint64, err error) {
	return h.store.newer(ctx, "executions", h.table)
}

// newer compares two tables of rows. No row counts as version 0.
func (s *Store) newer(ctx context.Context, table, other string) (versions map[string]uint64, err error) {
	if err := errors.Join(s.catchUp(ctx, table), s.catchUp(ctx, other)); err != nil {
		return nil, fmt.Errorf("compare versions of %s and %s: %w", table, other, err)
	}
	rows, err := s.conn.Query(ctx, `SELECT execution_id, here.version
FROM (SELECT execution_id, max(version) AS version FROM `+table+` GROUP BY execution_id) AS here
	LEFT JOIN (SELECT execution_id, max(version) AS version FROM `+other+` GROUP BY execution_id) AS there USING (execution_id)
WHERE here.version > there.version`)
	if err != nil {
		return nil, fmt.Errorf("compare versions of %s and %s: %w", table, other, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	versions = map[string]uint64{}
	for rows.Next() {
		var id string
		var version uint64
		if err := rows.Scan(&id, &version); err != nil {
			return nil, err
		}
		versions[id] = version
	}
	return versions, rows.Err()
}

// Difference is an execution whose live and rebuilt rows are not the same.
type Difference struct {
	ExecutionID string
	// Live and Rebuilt are nil where there is no row.
	Live, Rebuilt *execution.Row
	// Columns are the names of the row's members (its JSON) that differ, when there are both.
	Columns []string
}

// Differences yields every difference between executions and this table, in the order of the ids. With partial only
// executions of this table are looked at. After an error nothing more comes.
func (h *Shadow) Differences(ctx context.Context, partial bool) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		ids, err := h.differing(ctx, partial)
		if err != nil {
			yield(Difference{}, fmt.Errorf("compare executions and %s: %w", h.table, err))
			return
		}
		for _, id := range ids {
			d, err := h.difference(ctx, id)
			if err == nil && d.Live != nil && d.Rebuilt != nil && len(d.Columns) == 0 {
				continue // It was on its way to the table a moment ago.
			}
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// comparedSQL is the digest of all columns that people read. Maps have no order, so they get one.
func comparedSQL(table string) string {
	columns := make([]string, 0, len(rowColumns))
	for _, c := range rowColumns {
		if c == "labels" || c == "facts" {
			c = "mapSort(" + c + ")"
		}
		columns = append(columns, c)
	}
	return `SELECT execution_id, toUInt8(1) AS there, sipHash64(toString(tuple(` + list(columns) + `))) AS digest
FROM ` + table + ` FINAL`
}

func (h *Shadow) differing(ctx context.Context, partial bool) (ids []string, err error) {
	join := "FULL OUTER JOIN"
	if partial {
		join = "RIGHT JOIN"
	}
	rows, err := h.store.conn.Query(ctx, `SELECT execution_id
FROM (`+comparedSQL("executions")+`) AS live `+join+` (`+comparedSQL(h.table)+`) AS rebuilt USING (execution_id)
WHERE live.there != rebuilt.there OR live.digest != rebuilt.digest
ORDER BY execution_id`+final)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

func (h *Shadow) difference(ctx context.Context, id string) (Difference, error) {
	d := Difference{ExecutionID: id}
	for table, into := range map[string]**execution.Row{"executions": &d.Live, h.table: &d.Rebuilt} {
		row, err := h.store.row(ctx, table, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return d, err
		}
		*into = &row
	}
	if d.Live == nil || d.Rebuilt == nil {
		return d, nil
	}
	var err error
	d.Columns, err = DifferentColumns(*d.Live, *d.Rebuilt)
	return d, err
}

// DifferentColumns names the members of two rows (by their JSON) that differ, sorted.
func DifferentColumns(a, b execution.Row) ([]string, error) {
	x, err := members(a)
	if err != nil {
		return nil, err
	}
	y, err := members(b)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, v := range x {
		if string(v) != string(y[name]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func members(r execution.Row) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode row: %w", err)
	}
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("encode row: %w", err)
	}
	return m, nil
}

// Count is the number of rows of this table, and of the live one.
func (h *Shadow) Count(ctx context.Context) (rebuilt, live uint64, err error) {
	err = h.store.conn.QueryRow(ctx, "SELECT (SELECT uniqExact(execution_id) FROM "+h.table+"), (SELECT uniqExact(execution_id) FROM executions)").Scan(&rebuilt, &live)
	if err != nil {
		return 0, 0, fmt.Errorf("count rows of %s: %w", h.table, err)
	}
	return rebuilt, live, nil
}
