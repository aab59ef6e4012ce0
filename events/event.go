// Package events is the language every part of Verbatim speaks and what an outside producer imports:
// the envelope of a fact, the names of the facts, and the topics they travel on. It does no I/O.
//
// A fact is a CloudEvent 1.0 (https://github.com/cloudevents/spec). Its type is
// dev.verbatim.execution.<Name>.v1, its subject the execution, and its payload one of the Protobuf
// messages below proto/. Facts are numbered by their producer, from 1 and without holes, once per
// attempt; so the id
//
//	<execution>/<attempt>/<producer>/<sequence>
//
// is known before the fact is sent, sending it twice is sending it once, and a hole can be seen.
package events

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
)

// ContentTypeProtobuf and ContentTypeJSON are the two payload encodings: Verbatim writes the first
// and accepts the second (the Protobuf JSON mapping) from anybody.
const (
	ContentTypeProtobuf = "application/protobuf"
	ContentTypeJSON     = "application/json"
)

// Bounds on attributes that come from outside, in bytes. A longer one makes the record malformed.
const (
	MaxIDBytes     = 256
	MaxSourceBytes = 256
	MaxTypeBytes   = 256
	// MaxChunkBytes bounds OutputChunk.data.
	MaxChunkBytes = 1 << 20
)

// Event is one immutable fact. The pair (Source, ID) names it: two events with the same pair are the
// same event.
type Event struct {
	// ID is <execution>/<attempt>/<producer>/<sequence>.
	ID string
	// Source is the producer as a URI reference: /verbatim/preparer, /verbatim/runner/<id>.
	Source string
	// Type is the CloudEvent type.
	Type string
	// Subject is the execution's id; for RunnerHeartbeat and CordonRequested the runner's.
	Subject string
	// Attempt counts from 1; 0 is the execution itself, before any attempt.
	Attempt uint32
	// Sequence is the fact's number within its attempt and producer, from 1.
	Sequence uint64
	// Time is when it happened, by the producer's clock; zero when the producer did not say.
	Time time.Time
	// Traceparent is the W3C trace context, or empty.
	Traceparent string
	// ContentType is the payload's encoding, ContentTypeProtobuf or ContentTypeJSON for known types.
	ContentType string
	// Payload holds the payload's bytes as they travelled. Whoever reads an Event must not change them.
	Payload []byte
	// Data is the decoded payload; nil when Type is not known here. Such an event is kept and skipped.
	Data proto.Message
}

// Producer makes the events of one writer.
type Producer struct {
	// Name is the producer part of an id: preparer, runner, recorder, gateway.
	Name string
	// Source names the writer for ever, also over restarts.
	Source string
}

// Event builds a fact and encodes its payload. It fails when data is no known payload.
func (p Producer) Event(subject string, attempt uint32, sequence uint64, at time.Time, data proto.Message) (Event, error) {
	typ, err := TypeOf(data)
	if err != nil {
		return Event{}, err
	}
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(data)
	if err != nil {
		return Event{}, fmt.Errorf("encode %s: %w", typ, err)
	}
	e := Event{
		ID:     ID(subject, attempt, p.Name, sequence),
		Source: p.Source, Type: typ, Subject: subject, Attempt: attempt, Sequence: sequence,
		Time: at.UTC(), ContentType: ContentTypeProtobuf, Payload: payload, Data: data,
	}
	return e, e.Validate()
}

// ID builds the deterministic id of a fact.
func ID(subject string, attempt uint32, producer string, sequence uint64) string {
	return subject + "/" + strconv.FormatUint(uint64(attempt), 10) + "/" + producer + "/" + strconv.FormatUint(sequence, 10)
}

// NewExecutionID returns a new UUIDv7 in its text form.
func NewExecutionID() (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make execution id: %w", err)
	}
	return id.String(), nil
}

// ParseExecutionID checks that s is a UUIDv7 in its canonical text form (RFC 9562: 36 characters,
// lower case) and returns the millisecond it was made in. Years outside 2000 to 2100 are refused: tables
// are partitioned by that time.
func ParseExecutionID(s string) (time.Time, error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return time.Time{}, fmt.Errorf("execution id %q is not a UUID in lower-case text form", cut(s))
	}
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		return time.Time{}, fmt.Errorf("execution id %q is not a UUIDv7", s)
	}
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	made := time.UnixMilli(ms).UTC()
	if y := made.Year(); y < 2000 || y > 2100 {
		return time.Time{}, fmt.Errorf("execution id %q says it was made in the year %d, which is outside 2000 to 2100", s, y)
	}
	return made, nil
}

// FirstExecutionID is the smallest execution id that can be made at or after t.
func FirstExecutionID(t time.Time) string {
	ms := max(0, t.UnixMilli()) & (1<<48 - 1)
	return fmt.Sprintf("%08x-%04x-7000-8000-000000000000", ms>>16, ms&0xffff)
}

// Validate reports everything that makes the event unfit for the log, joined.
func (e Event) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	attribute := func(name, value string, limit int) {
		switch {
		case value == "":
			bad("%s is empty", name)
		case len(value) > limit:
			bad("%s has %d bytes, the limit is %d", name, len(value), limit)
		}
	}
	attribute("id", e.ID, MaxIDBytes)
	attribute("source", e.Source, MaxSourceBytes)
	attribute("type", e.Type, MaxTypeBytes)
	attribute("subject", e.Subject, MaxIDBytes)
	if !AboutRunner(e.Type) {
		if _, err := ParseExecutionID(e.Subject); e.Subject != "" && err != nil {
			bad("subject: %w", err)
		}
	}
	if e.Sequence == 0 {
		bad("sequence is missing or 0, it counts from 1")
	}
	if !e.Time.IsZero() && (e.Time.Year() < 1970 || e.Time.Year() > 2261) {
		bad("time %s is outside 1970 to 2261", e.Time.Format(time.RFC3339))
	}
	if err := validatePayload(e); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// AboutExecution reports why the event is no fact about an execution, such as a RunnerHeartbeat: its subject is none.
func (e Event) AboutExecution() error {
	if _, err := ParseExecutionID(e.Subject); err != nil {
		return fmt.Errorf("%s is no fact about an execution: %w", e.Type, err)
	}
	return nil
}

func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
