package kafka

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// The headers a dead letter has on top of the record's own.
const (
	HeaderDeadLetterTopic     = "deadletter_topic"
	HeaderDeadLetterPartition = "deadletter_partition"
	HeaderDeadLetterOffset    = "deadletter_offset"
	HeaderDeadLetterTime      = "deadletter_time"
	HeaderDeadLetterGroup     = "deadletter_group"
	HeaderDeadLetterReason    = "deadletter_reason"
	// HeaderDeadLetterLeftOut is how many bytes of the record are not in a dead letter that would be too large with them (LeaveOut).
	HeaderDeadLetterLeftOut = "deadletter_left_out"
)

// MaxReasonBytes bounds the reason in a dead letter.
const MaxReasonBytes = 1 << 10

// DeadLetter returns the message to publish in place of one that cannot be handled: payload, key and headers
// unchanged, byte for byte, and headers behind them that say where it came from, which service gave up,
// when, and why. The reason is one line of valid UTF-8 of at most MaxReasonBytes; it is the error's text, so
// that text must hold no secrets.
func DeadLetter(msg *message.Message, group string, cause error) *message.Message {
	key, headers, payload := []byte(nil), HeadersFromContext(msg.Context()), []byte(msg.Payload)
	position, known := PositionFromContext(msg.Context())
	switch {
	case known:
		key = position.Key
	default:
		if k := msg.Metadata[headerPartitionKey]; k != "" {
			key = []byte(k)
		}
		for _, h := range headersOf(msg) {
			headers = append(headers, Header(h))
		}
	}
	reason := "unknown"
	if cause != nil {
		reason = cause.Error()
	}
	var added []Header
	add := func(k, v string) { added = append(added, Header{Key: k, Value: []byte(v)}) }
	if known {
		add(HeaderDeadLetterTopic, position.Topic)
		add(HeaderDeadLetterPartition, strconv.Itoa(position.Partition))
		add(HeaderDeadLetterOffset, strconv.FormatInt(position.Offset, 10))
	}
	add(HeaderDeadLetterTime, time.Now().UTC().Format(time.RFC3339Nano))
	add(HeaderDeadLetterGroup, oneLine(group, MaxReasonBytes))
	add(HeaderDeadLetterReason, oneLine(reason, MaxReasonBytes))

	if d, ok := msg.Context().Value(deliveryKey{}).(*delivery); ok {
		payload = d.record.Value // whatever a handler put into the message
	}
	letter := message.NewMessage(msg.UUID, payload)
	for k, v := range msg.Metadata {
		letter.Metadata[k] = v
	}
	for _, h := range added {
		letter.Metadata[h.Key] = string(h.Value)
	}
	all := append(append(make([]Header, 0, len(headers)+len(added)), headers...), added...)
	letter.SetContext(context.WithValue(context.WithoutCancel(msg.Context()), exactKey{}, &exact{key: key, headers: all, own: len(headers)}))
	return letter
}

// maxShort bounds the record's own key and headers in a dead letter without its value, in bytes each.
const maxShort = 64 << 10

// LeaveOut returns a dead letter (DeadLetter) without the record's value, for one that is too large for its topic (ErrTooLarge). Key and headers go
// too when they are large. A header says how many bytes of the record are left out; what was added to it stays.
func LeaveOut(letter *message.Message) *message.Message {
	x, ok := exactFromContext(letter.Context())
	if !ok {
		x = &exact{}
	}
	key, left := x.key, len(letter.Payload)
	own, added := x.headers[:x.own], x.headers[x.own:]
	if len(key) > maxShort {
		key, left = nil, left+len(key)
	}
	size := 0
	for _, h := range own {
		size += len(h.Key) + len(h.Value)
	}
	if size > maxShort {
		own, left = nil, left+size
	}
	short := message.NewMessage(letter.UUID, nil)
	headers := append(slices.Concat(own, added), Header{Key: HeaderDeadLetterLeftOut, Value: []byte(strconv.Itoa(left))})
	short.SetContext(WithRecord(letter.Context(), key, headers))
	return short
}

// oneLine makes s valid UTF-8 without control characters, at most limit bytes.
func oneLine(s string, limit int) string {
	if len(s) > 4*limit {
		s = s[:4*limit]
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.TrimSpace(s)
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	s = s[:limit-len(mark)]
	for len(s) > 0 {
		if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + mark
}
