package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// ErrClosed is returned by whatever was closed.
var ErrClosed = errors.New("closed")

// ErrLost says that a message no longer belongs to this consumer: its partition has a new owner, or the
// message was put back and will be delivered again.
var ErrLost = errors.New("message is no longer owned by this consumer")

// ErrUnknownOutcome says that a write was on its way when waiting for it ended: it may or may not be in
// the log. Writing the same message again is safe for readers that know its UUID.
var ErrUnknownOutcome = errors.New("may or may not have been written")

// ErrTooLarge says that a message is over the limit of the publisher, the topic or the broker.
var ErrTooLarge = errors.New("message too large")

// ErrUnknownTopic says that a topic does not exist.
var ErrUnknownTopic = errors.New("topic does not exist")

// FailedMessage is a message that was not acknowledged.
type FailedMessage struct {
	UUID string
	Err  error
}

// PublishError names the messages of one Publish that were not acknowledged; all others were. Among
// messages of one key the failed ones are always the last.
type PublishError struct {
	Topic  string
	Failed []FailedMessage
}

// Error names the first few messages.
func (e *PublishError) Error() string {
	const shown = 3
	var b strings.Builder
	fmt.Fprintf(&b, "publish to %s: %d message(s) not acknowledged", e.Topic, len(e.Failed))
	for i, f := range e.Failed {
		if i == shown {
			b.WriteString(", …")
			break
		}
		fmt.Fprintf(&b, ", %s: %v", cut(f.UUID, 128), f.Err)
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As every cause.
func (e *PublishError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		errs[i] = f.Err
	}
	return errs
}

// OffsetError says that a partition does not have the offset it should be read from: retention removed it
// (Offset < First), or the log ends before it (Offset > End: the broker lost records).
type OffsetError struct {
	Topic     string
	Partition int
	// Offset is what was asked for; First and End are what the broker has, [First, End).
	Offset, First, End int64
}

// Error says which range is missing.
func (e *OffsetError) Error() string {
	if e.Offset < e.First {
		return fmt.Sprintf("%s/%d: offsets %d to %d are gone, the log begins at %d", e.Topic, e.Partition, e.Offset, e.First-1, e.First)
	}
	return fmt.Sprintf("%s/%d: offset %d is past the end of the log at %d", e.Topic, e.Partition, e.Offset, e.End)
}

// retriable tells whether the same request may succeed later.
func retriable(err error) bool {
	var coded kafkago.Error
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, ErrClosed):
		return false
	case errors.As(err, &coded):
		// UNKNOWN_SERVER_ERROR says nothing either way. The embedded broker answers it when its disk is full.
		return coded.Temporary() || coded == kafkago.Unknown
	}
	return true
}

// staleMetadata tells whether asking the cluster anew for its topics and leaders may help.
func staleMetadata(err error) bool {
	var coded kafkago.Error
	if errors.As(err, &coded) {
		switch coded {
		case kafkago.UnknownTopicOrPartition, kafkago.LeaderNotAvailable, kafkago.NotLeaderForPartition,
			kafkago.BrokerNotAvailable, kafkago.FencedLeaderEpoch, kafkago.UnknownTopicID:
			return true
		default:
			return false
		}
	}
	return missingTopic(err) || errors.Is(err, protocol.ErrNoLeader)
}

func missingTopic(err error) bool {
	return errors.Is(err, kafkago.UnknownTopicOrPartition) || errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition)
}

func tooLarge(err error) bool {
	return errors.Is(err, kafkago.MessageSizeTooLarge) || errors.Is(err, kafkago.RecordListTooLarge)
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
