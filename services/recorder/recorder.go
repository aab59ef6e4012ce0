// Package recorder keeps every fact for good: it copies the log of facts into the archive, the table
// events, with the payload's original bytes. What the archive holds outlives Kafka's retention and is
// what output, events and replays are read from.
//
// A message is acknowledged after the batch it is in was stored. Killed anywhere before that, the
// facts are delivered and stored again; the archive keeps one of each (source, id). When the database
// is away the recorder waits for it, however long; nothing is dead-lettered for that.
package recorder

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/internal/batch"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/internal/retry"
)

// Archive stores facts. Storing the same fact again changes nothing.
type Archive interface {
	InsertEvents(ctx context.Context, events []clickhouse.ArchivedEvent) error
}

// Limits of a batch: a store takes few large inserts better than many small ones, and a fact is to be
// found within a second.
var limits = batch.Config{Items: 20_000, Bytes: 16 << 20, Delay: 200 * time.Millisecond}

// Recorder handles facts. It is safe for concurrent use.
type Recorder struct {
	archive Archive
	batcher *batch.Batcher[clickhouse.ArchivedEvent]
	logger  *slog.Logger
}

// New returns a recorder. Stop it after its handlers have ended.
func New(a Archive, logger *slog.Logger) *Recorder {
	r := &Recorder{archive: a, logger: logger}
	r.batcher = batch.New(limits, r.store)
	return r
}

// Handle archives one fact and returns when it is stored.
func (r *Recorder) Handle(m *message.Message) error {
	e, err := codec.FromMessage(m)
	if err != nil {
		return failure.Permanent(err)
	}
	at, ok := kafka.PositionFromContext(m.Context())
	if !ok {
		return failure.Permanent(fmt.Errorf("message %s says not where it comes from", m.UUID))
	}
	archived := clickhouse.ArchivedEvent{Event: e, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, ReceivedAt: at.Time}
	for _, h := range kafka.HeadersFromContext(m.Context()) {
		archived.Headers = append(archived.Headers, [2]string{h.Key, string(h.Value)})
	}
	return r.batcher.Add(m.Context(), archived, len(e.Payload)+512)
}

// Stop ends what is under way. Facts that were not stored stay unacknowledged.
func (r *Recorder) Stop() { r.batcher.Stop() }

func (r *Recorder) store(ctx context.Context, facts []clickhouse.ArchivedEvent) error {
	return retry.Until(ctx, r.logger, "archive facts", func() error { return r.archive.InsertEvents(ctx, facts) })
}
