package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/projections/execution"
)

// InsertRows writes the rows of states in one batch. A row replaces one with a smaller version, and of equal versions
// the one inserted last stays; so writing twice, or an older one after a newer one, changes nothing that is read.
func (s *Store) InsertRows(ctx context.Context, states []*execution.State) error {
	return s.insertRows(ctx, "executions", states)
}

func (s *Store) insertRows(ctx context.Context, table string, states []*execution.State) error {
	if len(states) == 0 {
		return nil
	}
	batch, err := s.insert(ctx, table, recordColumns)
	if err != nil {
		return fmt.Errorf("insert rows: %w", err)
	}
	defer func() { _ = batch.Close() }()
	for _, state := range states {
		r, err := recordOf(state)
		if err != nil {
			return fmt.Errorf("insert row of %s: %w", state.ID(), err)
		}
		if err := batch.AppendStruct(r); err != nil {
			return fmt.Errorf("insert row of %s: %w", state.ID(), err)
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert %d rows: %w", len(states), err)
	}
	return nil
}

// statesPerQuery bounds what one query of LoadStates holds in the server's memory.
const statesPerQuery = 100

// LoadStates returns the stored states of executions, by id; one that has no row is not in the map. A
// state that cannot be decoded is left out too and named in the error, which then has execution.ErrState in
// its chain and comes with the others.
func (s *Store) LoadStates(ctx context.Context, ids []string) (map[string]*execution.State, error) {
	return s.statesOf(ctx, "executions", ids)
}

func (s *Store) statesOf(ctx context.Context, table string, ids []string) (map[string]*execution.State, error) {
	states := make(map[string]*execution.State, len(ids))
	var broken []error
	for part := range slices.Chunk(ids, statesPerQuery) {
		days, err := daysOf(part)
		if err != nil {
			return nil, fmt.Errorf("load states: %w", err)
		}
		bad, err := s.loadStates(ctx, table, part, days, states)
		if err != nil {
			return nil, fmt.Errorf("load states: %w", err)
		}
		broken = append(broken, bad...)
	}
	return states, errors.Join(broken...)
}

// These are for a table of this package's naming. Most executions that a projector asks for are new, so it asks first which ones
// have a row: that reads nothing but the key. Conditions on the key may stand in PREWHERE beside FINAL, and without it whole granules
// of states would be read for one row.
const (
	knownSQL = `SELECT DISTINCT execution_id
FROM %s
PREWHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)}`
	loadStatesSQL = `SELECT execution_id, state, stdout, stderr
FROM %s FINAL
PREWHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)}` + final
)

// known returns those of the ids that have a row.
func (s *Store) known(ctx context.Context, table string, ids, days []string) (known []string, err error) {
	rows, err := s.conn.Query(ctx, fmt.Sprintf(knownSQL, table), clickhouse.Named("days", days), clickhouse.Named("ids", ids))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		known = append(known, id)
	}
	return known, rows.Err()
}

func (s *Store) loadStates(ctx context.Context, table string, ids, days []string, into map[string]*execution.State) (broken []error, err error) {
	if err := s.catchUp(ctx, table); err != nil {
		return nil, err
	}
	if ids, err = s.known(ctx, table, ids, days); err != nil || len(ids) == 0 {
		return nil, err
	}
	rows, err := s.conn.Query(ctx, fmt.Sprintf(loadStatesSQL, table), clickhouse.Named("days", days), clickhouse.Named("ids", ids))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id, stored string
		var stdout, stderr *string
		if err := rows.Scan(&id, &stored, &stdout, &stderr); err != nil {
			return nil, err
		}
		state, err := execution.LoadBeside([]byte(stored), stdout, stderr)
		if err == nil && state.ID() != id {
			err = fmt.Errorf("%w: it is that of execution %q", execution.ErrState, state.ID())
		}
		if err != nil {
			broken = append(broken, fmt.Errorf("load state of execution %s: %w", id, err))
			continue
		}
		into[id] = state
	}
	return broken, rows.Err()
}

var rowSQL = `SELECT ` + list(readAs(rowColumns)) + `
FROM %s FINAL
PREWHERE created_day = {day:Date} AND execution_id = {id:String}` + final

// Row returns the row of an execution, or ErrNotFound. It is put together from the columns, not worked out from the stored state:
// so it is what SQL shows, it does not read the state (which can be large), and a test holds both to be the same.
func (s *Store) Row(ctx context.Context, id string) (execution.Row, error) {
	return s.row(ctx, "executions", id)
}

func (s *Store) row(ctx context.Context, table, id string) (execution.Row, error) {
	day, err := dayOf(id)
	if err != nil {
		return execution.Row{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	rows, err := s.records(ctx, fmt.Sprintf(rowSQL, table), clickhouse.Named("day", date(day)), clickhouse.Named("id", id))
	if err != nil {
		return execution.Row{}, fmt.Errorf("read row of %s: %w", id, err)
	}
	if len(rows) == 0 {
		return execution.Row{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return rows[0], nil
}

func (s *Store) records(ctx context.Context, query string, args ...any) (out []execution.Row, err error) {
	rows, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r record
		if err := rows.ScanStruct(&r); err != nil {
			return nil, err
		}
		out = append(out, r.row())
	}
	return out, rows.Err()
}
