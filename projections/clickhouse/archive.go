package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
)

// ArchivedEvent is an event with the Kafka record it came in.
type ArchivedEvent struct {
	Event     events.Event
	Topic     string
	Partition int
	Offset    int64
	// ReceivedAt is the record's time at the broker; 1970-01-01 when it is none that the archive can hold (years 1970 to 2261).
	ReceivedAt time.Time
	// Headers are the record's, name and value.
	Headers [][2]string
}

type header struct {
	Name  string `ch:"name"`
	Value string `ch:"value"`
}

var eventColumns = []string{
	"created_day", "execution_id", "attempt", "source", "sequence", "id", "type", "time", "received_at",
	"topic", "kafka_partition", "kafka_offset", "earliest", "content_type", "traceparent", "headers",
	"payload", "payload_bytes", "stream", "output_offset", "output_length",
}

// eventBatch holds a batch column by column, which is how it is sent.
type eventBatch struct {
	day                                                              []time.Time
	execution, source, id, typ, topic, contentType, traceparent, out []string
	attempt, payloadBytes, outLength                                 []uint32
	sequence, earliest, outOffset                                    []uint64
	at                                                               []*time.Time
	received                                                         []time.Time
	partition                                                        []int32
	offset                                                           []int64
	headers                                                          [][]header
	payload                                                          [][]byte
}

func (b *eventBatch) add(a ArchivedEvent) error {
	e := a.Event
	day, err := dayOf(e.Subject)
	if err != nil {
		return err
	}
	if a.Offset < 0 {
		return fmt.Errorf("kafka offset is %d", a.Offset)
	}
	b.day = append(b.day, day)
	b.execution = append(b.execution, e.Subject)
	b.attempt = append(b.attempt, e.Attempt)
	b.source = append(b.source, e.Source)
	b.sequence = append(b.sequence, e.Sequence)
	b.id = append(b.id, e.ID)
	b.typ = append(b.typ, e.Type)
	var at *time.Time
	if storable(e.Time) {
		at = &e.Time
	}
	b.at = append(b.at, at)
	received := a.ReceivedAt
	if !storable(received) {
		received = time.Unix(0, 0)
	}
	b.received = append(b.received, received)
	b.topic = append(b.topic, a.Topic)
	b.partition = append(b.partition, int32(a.Partition))
	b.offset = append(b.offset, a.Offset)
	b.earliest = append(b.earliest, ^uint64(a.Offset))
	b.contentType = append(b.contentType, e.ContentType)
	b.traceparent = append(b.traceparent, e.Traceparent)
	hs := make([]header, len(a.Headers))
	for i, h := range a.Headers {
		hs[i] = header{h[0], h[1]}
	}
	b.headers = append(b.headers, hs)
	b.payload = append(b.payload, e.Payload)
	b.payloadBytes = append(b.payloadBytes, uint32(len(e.Payload)))
	c, _ := e.Data.(*executionv1.OutputChunk)
	b.out = append(b.out, events.StreamName(c.GetStream()))
	b.outOffset = append(b.outOffset, c.GetOffset())
	b.outLength = append(b.outLength, uint32(len(c.GetData())))
	return nil
}

// storable says whether DateTime64(9) holds a time. A record's time is what its producer made it, and a column that refuses it
// would hold up every batch the record is in.
func storable(t time.Time) bool { return t.Year() >= 1970 && t.Year() <= 2261 }

// columns are in the order of eventColumns.
func (b *eventBatch) columns() []any {
	return []any{
		b.day, b.execution, b.attempt, b.source, b.sequence, b.id, b.typ, b.at, b.received,
		b.topic, b.partition, b.offset, b.earliest, b.contentType, b.traceparent, b.headers,
		b.payload, b.payloadBytes, b.out, b.outOffset, b.outLength,
	}
}

// InsertEvents archives events in one batch. Doing it twice is doing it once. An event whose subject is no execution id
// has no place in the archive and is an error, before anything is sent.
func (s *Store) InsertEvents(ctx context.Context, es []ArchivedEvent) error {
	if len(es) == 0 {
		return nil
	}
	var b eventBatch
	for _, e := range es {
		if err := b.add(e); err != nil {
			return fmt.Errorf("insert event %q: %w", e.Event.ID, err)
		}
	}
	batch, err := s.insert(ctx, "events", eventColumns)
	if err != nil {
		return fmt.Errorf("insert events: %w", err)
	}
	defer func() { _ = batch.Close() }()
	for i, column := range b.columns() {
		if err := batch.Column(i).Append(column); err != nil {
			return fmt.Errorf("insert events: column %s: %w", eventColumns[i], err)
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("insert %d events: %w", len(es), err)
	}
	return nil
}

// eventsPageBytes bounds the payloads of one page of Events; a page has at least one event.
const eventsPageBytes = 4 << 20

// ofTopic narrows to the facts' own topic, or to all others.
const ofTopic = `created_day = {day:Date} AND execution_id = {id:String}
	AND (topic = {facts:String}) = {own:Bool}`

// eventPagesSQL cuts an execution's events, in the order of their offsets, into pages of about the given size, and returns the
// last offset of each. It does not read the payloads. The overhead of an event is counted by row_number, because
// ClickHouse 26.7 fails to plan sum(payload_bytes + 1024) as a window function.
const eventPagesSQL = `SELECT max(kafka_offset) AS last
FROM (
	SELECT kafka_offset, intDiv(sum(payload_bytes) OVER w + 1024 * row_number() OVER w, {page:UInt64}) AS page
	FROM events
	WHERE ` + ofTopic + ` AND kafka_offset > {after:Int64}
	WINDOW w AS (ORDER BY kafka_offset ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
GROUP BY page
ORDER BY last`

const eventsSQL = `SELECT ` + archivedColumns + `
FROM events
WHERE ` + ofTopic + `
	AND kafka_offset > {after:Int64} AND kafka_offset <= {last:Int64}
ORDER BY kafka_offset, topic, kafka_partition, source, sequence, id`

// Events yields an execution's archived events, copies left out, in bounded memory. First come those of other topics
// (the request), then the facts (events.TopicExecutions) in the order of their Kafka offsets. A fact's offset as
// afterOffset yields only later facts; -1 yields everything. After an error nothing more comes.
func (s *Store) Events(ctx context.Context, id string, afterOffset int64) iter.Seq2[ArchivedEvent, error] {
	return func(yield func(ArchivedEvent, error) bool) {
		day, err := dayOf(id)
		if err != nil {
			yield(ArchivedEvent{}, fmt.Errorf("read events: %w", err))
			return
		}
		q := eventQuery{s, []any{clickhouse.Named("day", date(day)), clickhouse.Named("id", id), clickhouse.Named("facts", events.TopicExecutions)}, id}
		var seen execution.Seen
		once := func(a ArchivedEvent) bool {
			added, sure := seen.Add(a.Event)
			return sure && !added || yield(a, nil)
		}
		if afterOffset < 0 {
			if err = q.each(ctx, false, -1, once); err == nil {
				err = q.each(ctx, true, -1, once)
			}
		} else {
			err = q.each(ctx, true, afterOffset, once)
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(ArchivedEvent{}, fmt.Errorf("read events of %s: %w", id, err))
		}
	}
}

// errStopped says that the reader wants no more.
var errStopped = errors.New("stopped")

type eventQuery struct {
	store *Store
	args  []any
	id    string
}

// each yields the events of the own or of the other topics after an offset.
func (q eventQuery) each(ctx context.Context, own bool, after int64, yield func(ArchivedEvent) bool) error {
	args := append(q.args[:len(q.args):len(q.args)], clickhouse.Named("own", own))
	pages, err := q.pages(ctx, append(args, clickhouse.Named("after", after), clickhouse.Named("page", uint64(eventsPageBytes))))
	if err != nil {
		return err
	}
	for _, last := range pages {
		if err := q.page(ctx, append(args[:len(args):len(args)], clickhouse.Named("after", after), clickhouse.Named("last", last)), yield); err != nil {
			return err
		}
		after = last
	}
	return nil
}

func (q eventQuery) pages(ctx context.Context, args []any) (pages []int64, err error) {
	rows, err := q.store.conn.Query(ctx, eventPagesSQL, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var last int64
		if err := rows.Scan(&last); err != nil {
			return nil, err
		}
		pages = append(pages, last)
	}
	return pages, rows.Err()
}

func (q eventQuery) page(ctx context.Context, args []any, yield func(ArchivedEvent) bool) (err error) {
	rows, err := q.store.conn.Query(ctx, eventsSQL, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		a := ArchivedEvent{Event: events.Event{Subject: q.id}}
		if err := scanEvent(rows, &a); err != nil {
			return err
		}
		if !yield(a) {
			return errStopped
		}
	}
	return rows.Err()
}

// archivedColumns are what scanEvent reads, after what before names.
const archivedColumns = `attempt, source, sequence, id, type, time, received_at, topic, kafka_partition, kafka_offset,
	content_type, traceparent, headers, payload`

func scanEvent(rows driver.Rows, a *ArchivedEvent, before ...any) error {
	var at *time.Time
	var partition int32
	var hs []header
	var payload string
	e := &a.Event
	err := rows.Scan(append(before, &e.Attempt, &e.Source, &e.Sequence, &e.ID, &e.Type, &at, &a.ReceivedAt, &a.Topic, &partition, &a.Offset,
		&e.ContentType, &e.Traceparent, &hs, &payload)...)
	if err != nil {
		return err
	}
	a.Partition, a.ReceivedAt = int(partition), a.ReceivedAt.UTC()
	if at != nil {
		e.Time = at.UTC()
	}
	for _, h := range hs {
		a.Headers = append(a.Headers, [2]string{h.Name, h.Value})
	}
	e.Payload = []byte(payload)
	if e.Data, err = decode(e.Type, e.ContentType, e.Payload); err != nil {
		return fmt.Errorf("event %q: %w", e.ID, err)
	}
	return nil
}

// decode reads a payload; nil for a type that is not known here.
func decode(typ, contentType string, payload []byte) (proto.Message, error) {
	data, known := events.NewPayload(typ)
	if !known {
		return nil, nil
	}
	var err error
	if contentType == events.ContentTypeJSON {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(payload, data)
	} else {
		err = proto.Unmarshal(payload, data)
	}
	if err != nil {
		return nil, fmt.Errorf("decode payload of %s: %w", typ, err)
	}
	return data, nil
}
