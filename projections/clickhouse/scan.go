package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// Range narrows the facts of the archive. The zero Range is all of them.
type Range struct {
	// After leaves out the executions up to this id.
	After string
	// Since and Until bound the time at the broker: [Since, Until). Zero: no bound.
	Since, Until time.Time
}

const (
	// scanExecutions is how many executions are looked at in one go, scanBytes how much of them is read in one query.
	scanExecutions = 5000
	scanBytes      = 8 << 20
)

const inRange = `topic = {facts:String} AND execution_id > {after:String}
	AND received_at >= {since:DateTime64(9, 'UTC')} AND received_at < {until:DateTime64(9, 'UTC')}`

func (r Range) args() []any {
	if r.Until.IsZero() {
		r.Until = time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if r.Since.IsZero() {
		r.Since = time.Unix(0, 0)
	}
	return []any{
		clickhouse.Named("facts", events.TopicExecutions), clickhouse.Named("after", r.After),
		clickhouse.Named("since", instant(r.Since)), clickhouse.Named("until", instant(r.Until)),
	}
}

// instant is a time as a parameter of type DateTime64.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999999") }

// CountFacts is the number of archived facts, copies that are not merged yet counted too.
func (s *Store) CountFacts(ctx context.Context, r Range) (facts uint64, err error) {
	if err := s.conn.QueryRow(ctx, "SELECT count() FROM events WHERE "+inRange, r.args()...).Scan(&facts); err != nil {
		return 0, fmt.Errorf("count facts: %w", err)
	}
	return facts, nil
}

// Facts yields the archived facts of every execution, one execution after the other in the order of their ids and each in
// the order of its Kafka offsets, copies left out, in bounded memory. After an error nothing more comes.
func (s *Store) Facts(ctx context.Context, r Range) iter.Seq2[ArchivedEvent, error] {
	return func(yield func(ArchivedEvent, error) bool) {
		scan := scan{store: s, yield: func(a ArchivedEvent) bool { return yield(a, nil) }}
		for {
			sizes, err := s.sizes(ctx, r)
			if err == nil {
				err = scan.executions(ctx, r, sizes)
			}
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				yield(ArchivedEvent{}, fmt.Errorf("read the archive: %w", err))
				return
			}
			if len(sizes) < scanExecutions {
				return
			}
			r.After = sizes[len(sizes)-1].id
		}
	}
}

type size struct {
	id    string
	bytes uint64
}

// sizesSQL goes along the primary key and ends with its last group. By default ClickHouse would group everything behind the beginning
// first, so that reading an archive of n executions cost n².
const sizesSQL = `SELECT execution_id, sum(payload_bytes) + 1024 * count()
FROM events
WHERE ` + inRange + `
GROUP BY execution_id
ORDER BY execution_id
LIMIT {limit:UInt64}
SETTINGS optimize_aggregation_in_order = 1`

func (s *Store) sizes(ctx context.Context, r Range) (sizes []size, err error) {
	rows, err := s.conn.Query(ctx, sizesSQL, append(r.args(), clickhouse.Named("limit", uint64(scanExecutions)))...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var z size
		if err := rows.Scan(&z.id, &z.bytes); err != nil {
			return nil, err
		}
		sizes = append(sizes, z)
	}
	return sizes, rows.Err()
}

// scan yields facts, each once as far as one execution is concerned.
type scan struct {
	store   *Store
	yield   func(ArchivedEvent) bool
	current string
	seen    *execution.Seen
}

func (c *scan) once(a ArchivedEvent) bool {
	if c.seen == nil || c.current != a.Event.Subject {
		c.current, c.seen = a.Event.Subject, &execution.Seen{}
	}
	added, sure := c.seen.Add(a.Event)
	return sure && !added || c.yield(a)
}

func (c *scan) executions(ctx context.Context, r Range, sizes []size) error {
	for len(sizes) > 0 {
		n, bytes := 0, uint64(0)
		for n < len(sizes) && (n == 0 || bytes+sizes[n].bytes <= scanBytes) {
			bytes += sizes[n].bytes
			n++
		}
		var err error
		if bytes > scanBytes {
			err = c.large(ctx, r, sizes[0].id)
		} else {
			err = c.several(ctx, r, sizes[n-1].id)
		}
		if err != nil {
			return err
		}
		r.After, sizes = sizes[n-1].id, sizes[n:]
	}
	return nil
}

// several reads the executions up to an id in one query.
func (c *scan) several(ctx context.Context, r Range, last string) (err error) {
	rows, err := c.store.conn.Query(ctx, `SELECT execution_id, `+archivedColumns+`
FROM events
WHERE `+inRange+` AND execution_id <= {last:String}
ORDER BY execution_id, kafka_offset, kafka_partition, source, sequence, id`, append(r.args(), clickhouse.Named("last", last))...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var a ArchivedEvent
		if err := scanEvent(rows, &a, &a.Event.Subject); err != nil {
			return err
		}
		if !c.once(a) {
			return errStopped
		}
	}
	return rows.Err()
}

// large reads one execution page by page.
func (c *scan) large(ctx context.Context, r Range, id string) error {
	day, err := dayOf(id)
	if err != nil {
		return err
	}
	q := eventQuery{c.store, []any{clickhouse.Named("day", date(day)), clickhouse.Named("id", id), clickhouse.Named("facts", events.TopicExecutions)}, id}
	return q.each(ctx, true, -1, func(a ArchivedEvent) bool {
		if a.ReceivedAt.Before(r.Since) || !r.Until.IsZero() && !a.ReceivedAt.Before(r.Until) {
			return true
		}
		return c.once(a)
	})
}
