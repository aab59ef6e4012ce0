package clickhouse

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// Attempt names one try of an execution.
type Attempt struct {
	ID     string
	Number uint32
}

const lastOffsetsSQL = `SELECT execution_id, attempt, max(kafka_offset)
FROM events
WHERE created_day IN {days:Array(Date)} AND execution_id IN {ids:Array(String)} AND topic = {facts:String} AND type IN {types:Array(String)}
GROUP BY execution_id, attempt`

// LastOffsets returns, for those of the attempts that have archived facts of one of the types, the highest Kafka offset of these.
func (s *Store) LastOffsets(ctx context.Context, attempts []Attempt, types ...string) (last map[Attempt]int64, err error) {
	wanted := map[Attempt]bool{}
	ids, days := map[string]bool{}, map[string]bool{}
	for _, a := range attempts {
		day, err := dayOf(a.ID)
		if err != nil {
			return nil, fmt.Errorf("ask for the last facts: %w", err)
		}
		wanted[a], ids[a.ID], days[date(day)] = true, true, true
	}
	rows, err := s.conn.Query(ctx, lastOffsetsSQL, clickhouse.Named("days", keys(days)), clickhouse.Named("ids", keys(ids)),
		clickhouse.Named("facts", events.TopicExecutions), clickhouse.Named("types", types))
	if err != nil {
		return nil, fmt.Errorf("ask for the last facts of %d attempts: %w", len(attempts), err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	last = map[Attempt]int64{}
	for rows.Next() {
		var a Attempt
		var offset int64
		if err := rows.Scan(&a.ID, &a.Number, &offset); err != nil {
			return nil, fmt.Errorf("read the last facts: %w", err)
		}
		if wanted[a] {
			last[a] = offset
		}
	}
	return last, rows.Err()
}

func keys(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	return out
}

const attemptFactsSQL = `SELECT ` + archivedColumns + `
FROM events
WHERE created_day = {day:Date} AND execution_id = {id:String} AND attempt = {attempt:UInt32} AND topic = {facts:String} AND type IN {types:Array(String)}
ORDER BY kafka_offset, source, sequence, id
LIMIT {limit:UInt64}`

// maxAttemptFacts bounds what AttemptFacts returns: its types are such that an attempt has few of.
const maxAttemptFacts = 10_000

// AttemptFacts returns an attempt's archived facts of the types, in the order of their Kafka offsets, copies left out.
func (s *Store) AttemptFacts(ctx context.Context, a Attempt, types ...string) (facts []ArchivedEvent, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read facts of attempt %d of %s: %w", a.Number, a.ID, err)
		}
	}()
	day, err := dayOf(a.ID)
	if err != nil {
		return nil, err
	}
	rows, err := s.conn.Query(ctx, attemptFactsSQL, clickhouse.Named("day", date(day)), clickhouse.Named("id", a.ID), clickhouse.Named("attempt", a.Number),
		clickhouse.Named("facts", events.TopicExecutions), clickhouse.Named("types", types), clickhouse.Named("limit", uint64(maxAttemptFacts)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var seen execution.Seen
	for rows.Next() {
		f := ArchivedEvent{Event: events.Event{Subject: a.ID}}
		if err := scanEvent(rows, &f); err != nil {
			return nil, err
		}
		if added, sure := seen.Add(f.Event); added || !sure {
			facts = append(facts, f)
		}
	}
	return facts, rows.Err()
}
