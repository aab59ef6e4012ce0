// Package deadletter reads what could not be handled, and sends it back where it came from.
//
// A dead letter is the record as it was, key, headers and value, with headers behind them that say where it
// came from, who gave up, when, and why (package events/kafka). Redriving publishes the record without these
// headers to the topic it came from. A fact has a deterministic id, so redriving it twice, or one that was
// handled after all, changes nothing. The dead letter itself stays until the topic's retention.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
)

// ErrNotFound says that there is no dead letter of that name.
var ErrNotFound = errors.New("there is no such dead letter")

// ID names a dead letter by its place in the dead-letter topic.
type ID struct {
	Partition int
	Offset    int64
}

// String is PARTITION/OFFSET.
func (i ID) String() string { return strconv.Itoa(i.Partition) + "/" + strconv.FormatInt(i.Offset, 10) }

// ParseID reads PARTITION/OFFSET.
func ParseID(s string) (ID, error) {
	partition, offset, ok := strings.Cut(s, "/")
	p, err1 := strconv.ParseUint(partition, 10, 31)
	o, err2 := strconv.ParseUint(offset, 10, 63)
	if !ok || err1 != nil || err2 != nil {
		return ID{}, fmt.Errorf("%q names no dead letter: it is PARTITION/OFFSET, as \"verbatim deadletter list\" shows", s)
	}
	return ID{int(p), int64(o)}, nil
}

// Letter is a dead letter. What is not known of its origin is empty or -1.
type Letter struct {
	ID ID
	// Topic, Partition and Offset are where the record came from.
	Topic     string
	Partition int
	Offset    int64
	// Time is when it was given up, Group by whom, Reason why.
	Time   time.Time
	Group  string
	Reason string
	// Key, Headers and Value are the record as it was.
	Key     []byte
	Headers []kafka.Header
	Value   []byte
	// LeftOut is how many bytes of the record are not here, because the dead letter would have been too large: the value, and maybe key
	// and headers.
	LeftOut int64
}

// own are the headers that were added to the record.
var own = []string{
	kafka.HeaderDeadLetterTopic, kafka.HeaderDeadLetterPartition, kafka.HeaderDeadLetterOffset,
	kafka.HeaderDeadLetterTime, kafka.HeaderDeadLetterGroup, kafka.HeaderDeadLetterReason,
}

// letterOf takes a record of the dead-letter topic apart. The added headers are the last of each name: the record
// may have had some of that name itself, when it was a dead letter before.
func letterOf(r kafka.Record) Letter {
	l := Letter{ID: ID{r.Partition, r.Offset}, Partition: -1, Offset: -1, Key: r.Key, Value: r.Value, Headers: slices.Clone(r.Headers)}
	if n := len(l.Headers) - 1; n >= 0 && l.Headers[n].Key == kafka.HeaderDeadLetterLeftOut { // It stands behind the others.
		l.LeftOut, _ = strconv.ParseInt(string(l.Headers[n].Value), 10, 64)
		l.Headers = l.Headers[:n]
	}
	added := map[string]string{}
	for _, name := range own {
		for i := len(l.Headers) - 1; i >= 0; i-- {
			if l.Headers[i].Key == name {
				added[name] = string(l.Headers[i].Value)
				l.Headers = slices.Delete(l.Headers, i, i+1)
				break
			}
		}
	}
	l.Topic, l.Group, l.Reason = added[kafka.HeaderDeadLetterTopic], added[kafka.HeaderDeadLetterGroup], added[kafka.HeaderDeadLetterReason]
	if p, err := strconv.Atoi(added[kafka.HeaderDeadLetterPartition]); err == nil {
		l.Partition = p
	}
	if o, err := strconv.ParseInt(added[kafka.HeaderDeadLetterOffset], 10, 64); err == nil {
		l.Offset = o
	}
	if t, err := time.Parse(time.RFC3339Nano, added[kafka.HeaderDeadLetterTime]); err == nil {
		l.Time = t
	}
	return l
}

// All yields the dead letters that are there when it is called, partition by partition, in the order in which they
// came. An error comes last.
func All(ctx context.Context, c kafka.Config) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		first, end, err := bounds(ctx, c)
		if err != nil {
			yield(Letter{}, err)
			return
		}
		for partition := range len(end) {
			for l, err := range read(ctx, c, partition, first[partition], end[partition]) {
				if !yield(l, err) || err != nil {
					return
				}
			}
		}
	}
}

// Get returns one dead letter, or ErrNotFound.
func Get(ctx context.Context, c kafka.Config, id ID) (Letter, error) {
	first, end, err := bounds(ctx, c)
	if err != nil {
		return Letter{}, err
	}
	if id.Partition >= len(end) || id.Offset < first[id.Partition] || id.Offset >= end[id.Partition] {
		return Letter{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	for l, err := range read(ctx, c, id.Partition, id.Offset, id.Offset+1) {
		if err != nil {
			return Letter{}, err
		}
		if l.ID == id {
			return l, nil
		}
	}
	return Letter{}, fmt.Errorf("%w: %s", ErrNotFound, id)
}

func bounds(ctx context.Context, c kafka.Config) (first, end map[int]int64, err error) {
	admin, err := kafka.NewAdmin(c)
	if err != nil {
		return nil, nil, err
	}
	defer admin.Close()
	// Says within seconds when there is no broker, or no such topic.
	letters := slices.DeleteFunc(events.Topics(), func(t events.Topic) bool { return t.Name != events.TopicDeadletter })
	if err := admin.CheckTopics(ctx, []kafka.Topic{kafka.Topic(letters[0])}); err != nil {
		return nil, nil, err
	}
	if first, err = admin.FirstOffsets(ctx, events.TopicDeadletter); err != nil {
		return nil, nil, fmt.Errorf("find the dead letters: %w", err)
	}
	if end, err = admin.EndOffsets(ctx, events.TopicDeadletter); err != nil {
		return nil, nil, fmt.Errorf("find the dead letters: %w", err)
	}
	return first, end, nil
}

// read yields the records [from, end) of a partition.
func read(ctx context.Context, c kafka.Config, partition int, from, end int64) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		if from >= end {
			return
		}
		reader, err := kafka.NewPartitionReader(c, events.TopicDeadletter, partition, from)
		if err != nil {
			yield(Letter{}, err)
			return
		}
		defer reader.Close()
		for record, err := range reader.Until(ctx, end) {
			if err != nil {
				yield(Letter{}, fmt.Errorf("read the dead letters: %w", err))
				return
			}
			if !yield(letterOf(record), nil) {
				return
			}
		}
	}
}

// Publisher writes messages to a topic. It returns nil only when every message is kept.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Redrive publishes the record to the topic it came from, as it was. One of which something is left out is an error.
func Redrive(ctx context.Context, p Publisher, l Letter) error {
	known := slices.ContainsFunc(events.Topics(), func(t events.Topic) bool { return t.Name == l.Topic })
	if !known || l.Topic == events.TopicDeadletter {
		return fmt.Errorf("dead letter %s came from %q, which is no topic to send it back to", l.ID, l.Topic)
	}
	if l.LeftOut > 0 {
		return fmt.Errorf("dead letter %s was too large to be kept whole: %d bytes are left out, so it cannot be sent back", l.ID, l.LeftOut)
	}
	m := message.NewMessage(l.ID.String(), l.Value)
	m.SetContext(kafka.WithRecord(ctx, l.Key, l.Headers))
	if err := p.PublishContext(ctx, l.Topic, m); err != nil {
		return fmt.Errorf("send dead letter %s back: %w", l.ID, err)
	}
	return nil
}
