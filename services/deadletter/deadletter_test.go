package deadletter

import (
	"context"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
)

func TestIDs(t *testing.T) {
	t.Parallel()
	id, err := ParseID("2/17")
	if err != nil || id != (ID{2, 17}) || id.String() != "2/17" {
		t.Errorf("%v, %v", id, err)
	}
	for _, s := range []string{"", "2", "2/", "/17", "-1/17", "2/-17", "2/17/1", "a/b", "99999999999/1", "1/99999999999999999999"} {
		if _, err := ParseID(s); err == nil || !strings.Contains(err.Error(), "PARTITION/OFFSET") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func header(name, value string) kafka.Header { return kafka.Header{Key: name, Value: []byte(value)} }

// A record that was a dead letter before, was sent back by hand with all its headers, and failed again.
func TestOnlyTheLastHeadersAreTheDeadLettersOwn(t *testing.T) {
	t.Parallel()
	before := []kafka.Header{header("a", "1"), header("a", "2"), header(kafka.HeaderDeadLetterTopic, "elsewhere"), header(kafka.HeaderDeadLetterReason, "before")}
	l := letterOf(kafka.Record{
		Position: kafka.Position{Partition: 1, Offset: 5, Key: []byte("k")}, Value: []byte{0, 255},
		Headers: append(append([]kafka.Header{}, before...),
			header(kafka.HeaderDeadLetterTopic, events.TopicWork), header(kafka.HeaderDeadLetterPartition, "3"), header(kafka.HeaderDeadLetterOffset, "9"),
			header(kafka.HeaderDeadLetterTime, "2026-11-25T12:00:00.5Z"), header(kafka.HeaderDeadLetterGroup, "runner"), header(kafka.HeaderDeadLetterReason, "now")),
	})
	if l.ID != (ID{1, 5}) || l.Topic != events.TopicWork || l.Partition != 3 || l.Offset != 9 || l.Group != "runner" || l.Reason != "now" || l.Time.Nanosecond() != 5e8 {
		t.Errorf("%+v", l)
	}
	if diff := cmp.Diff(before, l.Headers); diff != "" || string(l.Key) != "k" || string(l.Value) != "\x00\xff" {
		t.Errorf("the record is not as it was: %s", diff)
	}
}

func TestWhatSomebodyElseWroteIsShown(t *testing.T) {
	t.Parallel()
	l := letterOf(kafka.Record{Headers: []kafka.Header{header("x", "y"), header(kafka.HeaderDeadLetterPartition, "banana")}})
	if l.Topic != "" || l.Partition != -1 || l.Offset != -1 || !l.Time.IsZero() {
		t.Errorf("%+v", l)
	}
	var none publisher
	for _, topic := range []string{"", "somewhere", events.TopicDeadletter} {
		l.Topic = topic
		if err := Redrive(t.Context(), &none, l); err == nil || none != 0 {
			t.Errorf("sent to %q: %v", topic, err)
		}
	}
	l.Topic = events.TopicWork
	if err := Redrive(t.Context(), &none, l); err != nil || none != 1 {
		t.Errorf("%d sent, %v", none, err)
	}
}

// What the record had is gone, so what is left is not sent back as if it were the record.
func TestALetterWithoutItsValueIsNotSentBack(t *testing.T) {
	t.Parallel()
	l := letterOf(kafka.Record{Headers: []kafka.Header{header("x", "y"), header(kafka.HeaderDeadLetterTopic, events.TopicWork), header(kafka.HeaderDeadLetterLeftOut, "12")}})
	if l.LeftOut != 12 || len(l.Headers) != 1 {
		t.Errorf("%+v", l)
	}
	var none publisher
	if err := Redrive(t.Context(), &none, l); err == nil || none != 0 || !strings.Contains(err.Error(), "12 bytes") {
		t.Errorf("%d sent, %v", none, err)
	}
}

type publisher int

func (p *publisher) PublishContext(_ context.Context, _ string, msgs ...*message.Message) error {
	*p += publisher(len(msgs))
	return nil
}
