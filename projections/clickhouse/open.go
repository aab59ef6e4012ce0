package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
)

// OpenExecution is what a row says of an execution of which something more is expected.
type OpenExecution struct {
	ExecutionID string
	// Attempt is the latest one, 0 when there is none.
	Attempt uint32
	Status  string
	// Runner is empty when none is known.
	Runner     string
	PreparedAt *time.Time
	RetryAt    *time.Time
}

const openSQL = `SELECT execution_id, ifNull(attempt, 0), status, ifNull(runner, ''), prepared_at, retry_at
FROM executions FINAL
WHERE created_day >= {since:Date} AND (NOT sealed OR status = 'retrying')` + final

// OpenExecutions yields the executions whose output is not sealed or that another attempt follows, from the day of a time on. After
// an error nothing more comes.
func (s *Store) OpenExecutions(ctx context.Context, since time.Time) iter.Seq2[OpenExecution, error] {
	return func(yield func(OpenExecution, error) bool) {
		if err := s.open(ctx, openSQL, since, yield); err != nil && !errors.Is(err, errStopped) {
			yield(OpenExecution{}, fmt.Errorf("read open executions: %w", err))
		}
	}
}

// stillOpen is what can still be going on with an execution of any age: it has not ended, or it ended lately, or another attempt follows.
// The many old ones that have no seal because there never was a process are not among them.
const stillOpen = `(NOT sealed AND (status IN ('requested', 'prepared', 'running') OR ended_at >= {since:Date}) OR status = 'retrying')`

// longOpenSQL first reads three small columns of the old days, without FINAL, and then merges the versions of what it found alone. That
// leaves out nothing: the newest version is one of those that it looks at.
const longOpenSQL = `SELECT execution_id, ifNull(attempt, 0), status, ifNull(runner, ''), prepared_at, retry_at
FROM executions FINAL
WHERE created_day < {since:Date} AND ` + stillOpen + ` AND (created_day, execution_id) IN (
	SELECT created_day, execution_id FROM executions WHERE created_day < {since:Date} AND ` + stillOpen + `
)` + final

// LongOpenExecutions yields the open executions from before the day of a time: those that have not ended, that ended on that day or later without a
// seal, or that another attempt follows. It looks at every row there is, so it is not for every minute. After an error nothing more comes.
func (s *Store) LongOpenExecutions(ctx context.Context, before time.Time) iter.Seq2[OpenExecution, error] {
	return func(yield func(OpenExecution, error) bool) {
		if err := s.open(ctx, longOpenSQL, before, yield); err != nil && !errors.Is(err, errStopped) {
			yield(OpenExecution{}, fmt.Errorf("read executions that are open for long: %w", err))
		}
	}
}

func (s *Store) open(ctx context.Context, query string, since time.Time, yield func(OpenExecution, error) bool) (err error) {
	rows, err := s.conn.Query(ctx, query, clickhouse.Named("since", date(since.UTC())))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var o OpenExecution
		if err := rows.Scan(&o.ExecutionID, &o.Attempt, &o.Status, &o.Runner, &o.PreparedAt, &o.RetryAt); err != nil {
			return err
		}
		if !yield(o, nil) {
			return errStopped
		}
	}
	return rows.Err()
}

// Story is what the archive holds of an execution but its output.
type Story struct {
	ExecutionID string
	// Facts are those of the log of facts without chunks, by rising offset; copies of a fact may be among them.
	Facts []ArchivedEvent
	// Last is the highest number archived of an attempt and source, chunks included.
	Last map[uint32]map[string]uint64
}

// storiesBytes bounds the payloads of the stories that are read at one time; one story alone may have more.
const storiesBytes = 32 << 20

const storySizesSQL = `SELECT execution_id, attempt, source, max(sequence), toUInt64(sumIf(payload_bytes, stream = ''))
FROM events
WHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)} AND topic = {facts:String}
GROUP BY execution_id, attempt, source`

const storiesSQL = `SELECT execution_id, ` + archivedColumns + `
FROM events
WHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)} AND topic = {facts:String} AND stream = ''
ORDER BY execution_id, kafka_offset`

// Stories yields the stories of executions, in bounded memory and in no order; one of which nothing is archived is left out. After an error
// nothing more comes.
func (s *Store) Stories(ctx context.Context, ids []string) iter.Seq2[*Story, error] {
	return func(yield func(*Story, error) bool) {
		if err := s.stories(ctx, ids, yield); err != nil && !errors.Is(err, errStopped) {
			yield(nil, fmt.Errorf("read stories: %w", err))
		}
	}
}

func (s *Store) stories(ctx context.Context, ids []string, yield func(*Story, error) bool) error {
	for part := range slices.Chunk(ids, statesPerQuery) {
		days, err := daysOf(part)
		if err != nil {
			return err
		}
		args := []any{clickhouse.Named("days", days), clickhouse.Named("facts", events.TopicExecutions)}
		all, sizes, err := s.storySizes(ctx, append(args, clickhouse.Named("ids", part)))
		if err != nil {
			return err
		}
		var some []string
		bytes := uint64(0)
		flush := func() error {
			if len(some) == 0 {
				return nil
			}
			if err := s.tell(ctx, append(args[:len(args):len(args)], clickhouse.Named("ids", some)), all); err != nil {
				return err
			}
			for _, id := range some {
				if !yield(all[id], nil) {
					return errStopped
				}
				delete(all, id)
			}
			some, bytes = nil, 0
			return nil
		}
		for _, id := range part {
			if all[id] == nil {
				continue
			}
			if bytes > 0 && bytes+sizes[id] > storiesBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			some, bytes = append(some, id), bytes+sizes[id]
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// daysOf are the days of executions, each once.
func daysOf(ids []string) ([]string, error) {
	days := make([]string, len(ids))
	for i, id := range ids {
		day, err := dayOf(id)
		if err != nil {
			return nil, err
		}
		days[i] = date(day)
	}
	slices.Sort(days)
	return slices.Compact(days), nil
}

func (s *Store) storySizes(ctx context.Context, args []any) (all map[string]*Story, sizes map[string]uint64, err error) {
	rows, err := s.conn.Query(ctx, storySizesSQL, args...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	all, sizes = map[string]*Story{}, map[string]uint64{}
	for rows.Next() {
		var id, source string
		var attempt uint32
		var last, bytes uint64
		if err := rows.Scan(&id, &attempt, &source, &last, &bytes); err != nil {
			return nil, nil, err
		}
		story := all[id]
		if story == nil {
			story = &Story{ExecutionID: id, Last: map[uint32]map[string]uint64{}}
			all[id] = story
		}
		if story.Last[attempt] == nil {
			story.Last[attempt] = map[string]uint64{}
		}
		story.Last[attempt][source] = last
		sizes[id] += bytes
	}
	return all, sizes, rows.Err()
}

// tell fills in the facts.
func (s *Store) tell(ctx context.Context, args []any, all map[string]*Story) (err error) {
	rows, err := s.conn.Query(ctx, storiesSQL, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var a ArchivedEvent
		if err := scanEvent(rows, &a, &a.Event.Subject); err != nil {
			return err
		}
		if story := all[a.Event.Subject]; story != nil {
			story.Facts = append(story.Facts, a)
		}
	}
	return rows.Err()
}
