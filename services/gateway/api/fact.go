package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
)

// Fact is an event as the API shows it: its attributes, where it stands in Kafka, and its payload.
type Fact struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Type   string `json:"type"`
	// Name is the short name of the type: OutputChunk.
	Name     string `json:"name"`
	Subject  string `json:"subject"`
	Attempt  uint32 `json:"attempt"`
	Sequence uint64 `json:"sequence"`
	// Time is when it happened by the producer's clock; null when the producer did not say.
	Time *time.Time `json:"time"`
	// ReceivedAt is when the broker took it.
	ReceivedAt  time.Time `json:"received_at"`
	Topic       string    `json:"topic"`
	Partition   int       `json:"partition"`
	Offset      int64     `json:"offset"`
	ContentType string    `json:"content_type"`
	// Data is the payload in the Protobuf JSON mapping. It is absent when the type is not known here;
	// then DataBase64 holds the payload's bytes.
	Data       json.RawMessage `json:"data,omitempty"`
	DataBase64 []byte          `json:"data_base64,omitempty"`
}

// Position is where a record stands in Kafka and when the broker took it.
type Position struct {
	Topic      string
	Partition  int
	Offset     int64
	ReceivedAt time.Time
}

// FactOf shows an event.
func FactOf(e events.Event, at Position) (Fact, error) {
	f := Fact{
		ID: e.ID, Source: e.Source, Type: e.Type, Name: NameOf(e.Type), Subject: e.Subject,
		Attempt: e.Attempt, Sequence: e.Sequence, ReceivedAt: at.ReceivedAt.UTC(),
		Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, ContentType: e.ContentType,
	}
	if !e.Time.IsZero() {
		t := e.Time.UTC()
		f.Time = &t
	}
	if e.Data == nil {
		f.DataBase64 = e.Payload
		return f, nil
	}
	data, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(e.Data)
	if err != nil {
		return Fact{}, fmt.Errorf("show event %s: %w", e.ID, err)
	}
	f.Data = data
	return f, nil
}

// Payload decodes the fact's payload; nil without an error when its type is not known here. Fields
// that are newer than this program are skipped.
func (f Fact) Payload() (proto.Message, error) {
	p, known := events.NewPayload(f.Type)
	if !known || len(f.Data) == 0 {
		return nil, nil
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(f.Data, p); err != nil {
		return nil, fmt.Errorf("read payload of event %s: %w", f.ID, err)
	}
	return p, nil
}

// NameOf returns the short name of a CloudEvent type: OutputChunk for
// dev.verbatim.execution.OutputChunk.v1. A type of somebody else's is its own name.
func NameOf(typ string) string {
	rest, ok := strings.CutPrefix(typ, "dev.verbatim.execution.")
	if !ok {
		return typ
	}
	name, version, ok := cutLast(rest, ".v")
	if !ok || strings.Trim(version, "0123456789") != "" {
		return typ
	}
	return name
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i <= 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}
