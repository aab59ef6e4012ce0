package kafka

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	kafkago "github.com/segmentio/kafka-go"
)

const (
	headerID           = "ce_id"
	headerPartitionKey = "ce_partitionkey"
)

// Header is one header of a record. A nil Value is Kafka's null.
type Header struct {
	Key   string
	Value []byte
}

// Position is where a record stands in the log.
type Position struct {
	// Topic is the topic's name without the configured prefix.
	Topic     string
	Partition int
	Offset    int64
	// Key is nil when the record has none.
	Key []byte
	// Time is the record's timestamp, to the millisecond. Where the topic says
	// message.timestamp.type=LogAppendTime it is the broker's; otherwise it is the producer's word and not to be trusted.
	// The embedded broker does not know that setting.
	Time time.Time
	// HighWatermark is the partition's end offset at the time of the fetch; HighWatermark-Offset-1
	// records lay behind this one.
	HighWatermark int64
	// Assignment is the same number for all records that a Subscriber delivers of a partition while it owns it
	// without interruption, and a new one afterwards. State that was built from a partition's records is as good as its
	// assignment: in between, another member may have gone on. 0 for a PartitionReader.
	Assignment uint64
}

// Record is a record as it lies in the log. Whoever reads it must not change its bytes. Messages of a Subscriber
// that were written together share memory: copy a key or value that is to be kept for long. Records of a
// PartitionReader, which readers pick few from and keep, have their own.
type Record struct {
	Position
	Headers []Header
	// Value is nil for Kafka's null.
	Value []byte
}

// own returns the record with memory of its own.
func (r *Record) own() Record {
	size := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Value)
	}
	all := make([]byte, 0, size)
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		from := len(all)
		all = append(all, b...)
		return all[from:len(all):len(all)]
	}
	o := *r
	o.Key, o.Value = keep(r.Key), keep(r.Value)
	if len(r.Headers) > 0 {
		o.Headers = make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			o.Headers[i] = Header{Key: h.Key, Value: keep(h.Value)}
		}
	}
	return o
}

// Message turns a record into a message; it never fails.
func (r *Record) Message() *message.Message {
	m, _ := r.message(headerText(r))
	return m
}

// headerText is the values of all headers of the records, one after the other. Cut up, it is one allocation for all of
// them.
func headerText(records ...*Record) string {
	size := 0
	for _, r := range records {
		for _, h := range r.Headers {
			size += len(h.Value)
		}
	}
	var all strings.Builder
	all.Grow(size)
	for _, r := range records {
		for _, h := range r.Headers {
			all.Write(h.Value)
		}
	}
	return all.String()
}

// message is Message with the record's part of a headerText, whose rest it returns.
func (r *Record) message(text string) (*message.Message, string) {
	m := message.NewMessage("", r.Value)
	m.Metadata = make(message.Metadata, len(r.Headers))
	for _, h := range r.Headers {
		m.Metadata[h.Key] = text[:len(h.Value)]
		text = text[len(h.Value):]
	}
	if m.UUID = m.Metadata[headerID]; m.UUID == "" {
		m.UUID = r.Topic + "/" + strconv.Itoa(r.Partition) + "/" + strconv.FormatInt(r.Offset, 10)
	}
	return m, text
}

type (
	positionKey struct{}
	headersKey  struct{}
	deliveryKey struct{}
	stoppingKey struct{}
	exactKey    struct{}
)

// PositionFromContext returns where the message of this context came from; false when it did not come
// from a Subscriber.
func PositionFromContext(ctx context.Context) (Position, bool) {
	p, ok := ctx.Value(positionKey{}).(*Position)
	if !ok {
		return Position{}, false
	}
	return *p, true
}

// HeadersFromContext returns the headers of the message's record as they came: order, duplicates and
// nulls kept. Do not change them.
func HeadersFromContext(ctx context.Context) []Header {
	h, _ := ctx.Value(headersKey{}).([]Header)
	return h
}

// Stopping is closed when the subscription of this context's message was told to end: the message still has
// SubscriberOptions.DrainTimeout to be settled, before its context ends. It is nil for other contexts.
func Stopping(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(stoppingKey{}).(<-chan struct{})
	return c
}

type exact struct {
	key     []byte
	headers []Header
	// own is how many of the headers a dead letter's record had itself.
	own int
}

// WithRecord makes Publish write exactly this key (nil: none) and these headers for a message with this
// context, instead of what it would take from the metadata. message.Copy drops it, as it drops every context.
func WithRecord(ctx context.Context, key []byte, headers []Header) context.Context {
	return context.WithValue(ctx, exactKey{}, &exact{key: key, headers: headers})
}

func exactFromContext(ctx context.Context) (*exact, bool) {
	e, ok := ctx.Value(exactKey{}).(*exact)
	return e, ok
}

// headersOf returns the headers a message is written with: the metadata sorted by name, and ce_id.
func headersOf(m *message.Message) []kafkago.Header {
	if e, ok := exactFromContext(m.Context()); ok {
		headers := make([]kafkago.Header, len(e.headers))
		for i, h := range e.headers {
			headers[i] = kafkago.Header(h)
		}
		return headers
	}
	headers := make([]kafkago.Header, 0, len(m.Metadata)+1)
	for k, v := range m.Metadata {
		if k != headerID || m.UUID == "" {
			headers = append(headers, kafkago.Header{Key: k, Value: []byte(v)})
		}
	}
	if m.UUID != "" {
		headers = append(headers, kafkago.Header{Key: headerID, Value: []byte(m.UUID)})
	}
	slices.SortFunc(headers, func(a, b kafkago.Header) int { return cmp.Compare(a.Key, b.Key) })
	return headers
}
