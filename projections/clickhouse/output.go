package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Chunk is consecutive bytes of a stream.
type Chunk struct {
	Attempt uint32
	Stream  string
	Offset  uint64
	// Sequence is that of the event the bytes came in.
	Sequence uint64
	Data     []byte
	// CapturedAt is when the event's first byte was read from the pipe; zero when the producer did not say.
	CapturedAt time.Time
}

// outputPageBytes is the stretch of a stream that one query reads.
const outputPageBytes = 4 << 20

const ofStream = `created_day = {day:Date} AND execution_id = {id:String} AND attempt = {attempt:UInt32} AND stream = {stream:String}`

const outputSQL = `SELECT sequence, output_offset, content_type, payload
FROM events
WHERE ` + ofStream + `
	AND output_offset >= {low:UInt64} AND output_offset < {high:UInt64} AND output_offset + output_length > {from:UInt64}
ORDER BY output_offset, source, sequence, id
LIMIT 1 BY output_offset, output_length`

const nextOutputSQL = `SELECT count(), min(output_offset)
FROM events
WHERE ` + ofStream + ` AND output_offset >= {high:UInt64}`

const outputSizeSQL = `SELECT max(output_offset + output_length)
FROM events
WHERE ` + ofStream

const latestAttemptSQL = `SELECT max(attempt)
FROM events
WHERE created_day = {day:Date} AND execution_id = {id:String} AND type IN {types:Array(String)}`

// Output yields the bytes [from, to) of a stream in the order of their offsets, each byte at most once, in bounded memory.
// attempt 0 is the latest, to 0 is the end. Bytes that are not archived are simply not there: a chunk whose Offset is
// not the end of the one before tells of a gap. Of two chunks that hold a position, the one that begins earlier gives it, then the one
// with the smaller source and sequence. After an error nothing more comes.
func (s *Store) Output(ctx context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		q, err := s.streamQuery(ctx, id, attempt, stream)
		if err == nil {
			if to == 0 {
				to = math.MaxUint64
			}
			err = q.read(ctx, from, to, func(c Chunk) bool { return yield(c, nil) })
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Chunk{}, fmt.Errorf("read %s of %s: %w", stream, id, err))
		}
	}
}

// OutputSize is the highest end of an archived chunk of a stream, in bytes; 0 when there is none. attempt 0 is the latest.
func (s *Store) OutputSize(ctx context.Context, id string, attempt uint32, stream string) (uint64, error) {
	q, err := s.streamQuery(ctx, id, attempt, stream)
	if err != nil {
		return 0, fmt.Errorf("read size of %s of %s: %w", stream, id, err)
	}
	var size uint64
	if err := s.conn.QueryRow(ctx, outputSizeSQL, q.args...).Scan(&size); err != nil {
		return 0, fmt.Errorf("read size of %s of %s: %w", stream, id, err)
	}
	return size, nil
}

type streamQuery struct {
	store   *Store
	args    []any
	attempt uint32
	stream  string
}

func (s *Store) streamQuery(ctx context.Context, id string, attempt uint32, stream string) (streamQuery, error) {
	day, err := dayOf(id)
	if err != nil {
		return streamQuery{}, err
	}
	args := []any{clickhouse.Named("day", date(day)), clickhouse.Named("id", id)}
	if attempt == 0 {
		if err := s.conn.QueryRow(ctx, latestAttemptSQL, args[0], args[1], clickhouse.Named("types", attemptTypes())).Scan(&attempt); err != nil {
			return streamQuery{}, fmt.Errorf("ask for the latest attempt: %w", err)
		}
	}
	return streamQuery{s, append(args, clickhouse.Named("attempt", attempt), clickhouse.Named("stream", stream)), attempt, stream}, nil
}

// attemptTypes are the types that make an attempt known, as in the fold.
func attemptTypes() []string {
	var types []string
	for _, t := range events.Types() {
		switch t {
		case events.TypeExecutionRequested, events.TypeCancelRequested, events.TypeStdinPart, events.TypeRunnerHeartbeat, events.TypeCordonRequested:
		default:
			types = append(types, t)
		}
	}
	return types
}

// read yields page by page. at is the first position that was not yielded yet.
func (q streamQuery) read(ctx context.Context, at, to uint64, yield func(Chunk) bool) error {
	for at < to {
		high := min(to, at+min(outputPageBytes, math.MaxUint64-at))
		end, err := q.page(ctx, at, high, to, yield)
		if err != nil {
			return err
		}
		at = max(end, high)
		if end >= high {
			continue // Most likely it goes on there.
		}
		var more, next uint64
		if err := q.store.conn.QueryRow(ctx, nextOutputSQL, append(q.args[:len(q.args):len(q.args)], clickhouse.Named("high", high))...).Scan(&more, &next); err != nil {
			return err
		}
		if more == 0 {
			return nil
		}
		at = max(at, next)
	}
	return nil
}

// page yields what begins below high and reaches past at, cut to [at, to), and returns the end of what it yielded.
func (q streamQuery) page(ctx context.Context, at, high, to uint64, yield func(Chunk) bool) (end uint64, err error) {
	args := append(q.args[:len(q.args):len(q.args)], clickhouse.Named("low", at-min(at, events.MaxChunkBytes)),
		clickhouse.Named("high", high), clickhouse.Named("from", at))
	rows, err := q.store.conn.Query(ctx, outputSQL, args...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var contentType string
		var payload []byte
		c := Chunk{Attempt: q.attempt, Stream: q.stream}
		if err := rows.Scan(&c.Sequence, &c.Offset, &contentType, &payload); err != nil {
			return 0, err
		}
		data, err := decode(events.TypeOutputChunk, contentType, payload)
		if err != nil {
			return 0, fmt.Errorf("sequence %d: %w", c.Sequence, err)
		}
		d := data.(*executionv1.OutputChunk)
		c.Data = d.GetData()
		if t := d.GetCapturedAt(); t.IsValid() {
			c.CapturedAt = t.AsTime()
		}
		if c.cut(at, to); len(c.Data) == 0 {
			continue
		}
		at = c.Offset + uint64(len(c.Data))
		if !yield(c) {
			return 0, errStopped
		}
	}
	return at, rows.Err()
}

// cut leaves the part of a chunk within [from, to).
func (c *Chunk) cut(from, to uint64) {
	end := c.Offset + uint64(len(c.Data))
	if end <= from || c.Offset >= to {
		c.Data = nil
		return
	}
	if end > to {
		c.Data = c.Data[:to-c.Offset]
	}
	if c.Offset < from {
		c.Data = c.Data[from-c.Offset:]
		c.Offset = from
	}
}
