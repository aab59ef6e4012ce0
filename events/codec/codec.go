// Package codec turns events into Kafka records and back: the CloudEvents 1.0 Kafka protocol binding
// (cloudevents/spec, kafka-protocol-binding.md).
//
// It writes binary mode: the value is the payload as it is, the content-type header says how it is
// encoded, and every other attribute is a header named ce_<attribute>. It reads binary and
// structured mode (content-type application/cloudevents+json), with payloads in application/protobuf or
// application/json.
//
// Decoding never panics and never loses anything: what cannot be decoded is an error that says which
// attribute is at fault, and the record stays with the caller, who dead-letters it. A type that is not
// known here is no error; such an event has payload bytes and no Data.
package codec

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
)

// Header names of the binding.
const (
	headerContentType = "content-type"
	headerPrefix      = "ce_"

	// HeaderPartitionKey carries the record's key, as the CloudEvents partitioning extension.
	HeaderPartitionKey = "ce_partitionkey"
	// HeaderID carries the event's id.
	HeaderID = "ce_id"
	// HeaderType carries the event's type.
	HeaderType = "ce_type"

	structuredJSON = "application/cloudevents+json"
)

// ErrMalformed is in the chain of every decoding error.
var ErrMalformed = errors.New("malformed event")

// Encode returns the headers and the value of a record in binary mode. The record's key is the
// header ce_partitionkey.
func Encode(e events.Event) (headers map[string]string, value []byte, err error) {
	if err := e.Validate(); err != nil {
		return nil, nil, fmt.Errorf("encode event %q: %w", e.ID, err)
	}
	headers = map[string]string{
		headerContentType:  e.ContentType,
		"ce_specversion":   "1.0",
		HeaderID:           e.ID,
		"ce_source":        e.Source,
		HeaderType:         e.Type,
		"ce_subject":       e.Subject,
		"ce_attempt":       strconv.FormatUint(uint64(e.Attempt), 10),
		HeaderPartitionKey: e.Subject,
		// The sequence extension orders by its text, so it has a fixed width.
		"ce_sequence": fmt.Sprintf("%020d", e.Sequence),
	}
	if !e.Time.IsZero() {
		headers["ce_time"] = e.Time.UTC().Format(time.RFC3339Nano)
	}
	if e.Traceparent != "" {
		headers["ce_traceparent"] = e.Traceparent
	}
	return headers, e.Payload, nil
}

// Decode reads a record in binary or structured mode. Header names are matched without regard to case; of several that differ only in
// case the one in lower case counts, without it the first in the order of bytes.
// The event shares value's memory.
func Decode(headers map[string]string, value []byte) (events.Event, error) {
	a, contentType := binary(headers)
	media, err := mediaType(contentType)
	if err != nil {
		return events.Event{}, malformed("content-type %q: %w", cut(contentType), err)
	}
	if strings.HasPrefix(media, "application/cloudevents") {
		if media != structuredJSON {
			return events.Event{}, malformed("content-type %q: of the structured modes only %s is read", cut(contentType), structuredJSON)
		}
		if a, media, value, err = structured(value); err != nil {
			return events.Event{}, err
		}
	}
	e, err := a.event()
	if err != nil {
		return events.Event{}, err
	}
	e.ContentType, e.Payload = media, value
	if err := decodePayload(&e); err != nil {
		return events.Event{}, err
	}
	if err := e.Validate(); err != nil {
		return events.Event{}, malformed("%w", err)
	}
	return e, nil
}

// mediaType is the content type without parameters; that of nothing is nothing.
func mediaType(contentType string) (string, error) {
	switch contentType {
	case "", events.ContentTypeProtobuf, events.ContentTypeJSON:
		return contentType, nil
	}
	media, _, err := mime.ParseMediaType(contentType)
	return media, err
}

// binary takes the headers of a record apart.
func binary(headers map[string]string) (a attributes, contentType string) {
	take := func(name, value string) {
		if name == headerContentType {
			contentType = value
		} else if attribute, ok := strings.CutPrefix(name, headerPrefix); ok {
			a.set(attribute, value)
		}
	}
	var others []string // not in lower case
	for name, v := range headers {
		if strings.ToLower(name) == name {
			take(name, v)
		} else {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	for _, name := range slices.Backward(others) { // Of two the first is taken last, and stays.
		lower := strings.ToLower(name)
		if _, ok := headers[lower]; !ok {
			take(lower, headers[name])
		}
	}
	return a, contentType
}

// attributes are those of a CloudEvent that are read.
type attributes struct {
	specversion, id, source, typ, subject, time, traceparent, sequence, attempt, partitionKey string
	hasPartitionKey                                                                           bool
}

// set sets one by its name. Unknown ones are none of Verbatim's.
func (a *attributes) set(name, value string) {
	switch name {
	case "specversion":
		a.specversion = value
	case "id":
		a.id = value
	case "source":
		a.source = value
	case "type":
		a.typ = value
	case "subject":
		a.subject = value
	case "time":
		a.time = value
	case "traceparent":
		a.traceparent = value
	case "sequence":
		a.sequence = value
	case "attempt":
		a.attempt = value
	case "partitionkey":
		a.partitionKey, a.hasPartitionKey = value, true
	}
}

// event is the event without its payload.
func (a *attributes) event() (events.Event, error) {
	if a.specversion != "1.0" {
		return events.Event{}, malformed("specversion is %q, only CloudEvents 1.0 is read", cut(a.specversion))
	}
	e := events.Event{ID: a.id, Source: a.source, Type: a.typ, Subject: a.subject, Traceparent: a.traceparent}
	var err error
	if e.Sequence, err = strconv.ParseUint(a.sequence, 10, 64); err != nil {
		return events.Event{}, malformed("sequence is %q, it is a number counted from 1", cut(a.sequence))
	}
	attempt, err := strconv.ParseUint(a.attempt, 10, 32)
	if err != nil {
		return events.Event{}, malformed("attempt is %q, it is a number (0 for the execution itself)", cut(a.attempt))
	}
	e.Attempt = uint32(attempt)
	if a.time != "" {
		if e.Time, err = time.Parse(time.RFC3339Nano, a.time); err != nil {
			return events.Event{}, malformed("time is %q, it is written as RFC 3339", cut(a.time))
		}
		e.Time = e.Time.UTC()
	}
	if a.hasPartitionKey && a.partitionKey != e.Subject {
		return events.Event{}, malformed("partitionkey is %q, it must equal the subject %q", cut(a.partitionKey), cut(e.Subject))
	}
	return e, nil
}

// decodePayload fills Data. Unknown fields and enum values are kept by Protobuf and skipped in JSON.
func decodePayload(e *events.Event) error {
	data, known := events.NewPayload(e.Type)
	if !known {
		return nil
	}
	var err error
	switch e.ContentType {
	case events.ContentTypeProtobuf, "application/x-protobuf":
		err = proto.Unmarshal(e.Payload, data)
	case events.ContentTypeJSON:
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(e.Payload, data)
	default:
		return malformed("content-type is %q, %s is %s or %s", cut(e.ContentType), e.Type, events.ContentTypeProtobuf, events.ContentTypeJSON)
	}
	if err != nil {
		return malformed("payload of %s: %w", e.Type, err)
	}
	e.Data = data
	return nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// cut keeps a hostile value from filling an error text.
func cut(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
