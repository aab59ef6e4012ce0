package codec

import (
	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
)

// ToMessage encodes an event as a Watermill message: its UUID is the event's id, its metadata are the
// record's headers.
func ToMessage(e events.Event) (*message.Message, error) {
	headers, value, err := Encode(e)
	if err != nil {
		return nil, err
	}
	m := message.NewMessage(e.ID, value)
	m.Metadata = headers
	return m, nil
}

// FromMessage decodes a Watermill message whose metadata are a record's headers.
func FromMessage(m *message.Message) (events.Event, error) {
	return Decode(m.Metadata, m.Payload)
}
