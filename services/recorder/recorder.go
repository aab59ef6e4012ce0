// Package recorder keeps every fact for good: it copies the log of facts into the archive, the table
// events, with the payload's original bytes. What the archive holds outlives Kafka's retention and is
// what output, events and replays are read from.
//
// A fact that lies in another partition than its execution's is published again, unchanged, where it belongs,
// and archived from there: producers with another partitioner (librdkafka's default is not Java's) or without keys
// would otherwise spread an execution over partitions, and with it over projectors and tails.
//
// A message is acknowledged after the batch it is in was stored. Killed anywhere before that, the
// facts are delivered and stored again; the archive keeps one of each (source, id). When the database
// is away the recorder waits for it, however long; nothing is dead-lettered for that.
package recorder

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
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
	// EraseEvents removes what is archived of deleted executions, but for the facts that say so.
	EraseEvents(ctx context.Context, ids []string) error
	// Deleted lists deleted executions of which events are archived yet.
	Deleted(ctx context.Context) ([]string, error)
}

// Observer is told of facts that were archived, in no certain order and maybe more than once. It must not keep the slice.
type Observer interface {
	Observe(facts []clickhouse.ArchivedEvent)
}

// Limits of a batch: a store takes few large inserts better than many small ones, and a fact is to be
// found within a second. What a batch holds is in memory some five times on its way, and half of what one partition may have in flight (package
// wiring) lets the next batch be gathered while one is stored.
var limits = batch.Config{Items: 20_000, Bytes: 4 << 20, Delay: 200 * time.Millisecond}

// Publisher writes messages to a topic. It returns nil only when every message is kept.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Recorder handles facts. It is safe for concurrent use.
type Recorder struct {
	archive    Archive
	publisher  Publisher
	partitions int
	moved      prometheus.Counter
	batcher    *batch.Batcher[clickhouse.ArchivedEvent]
	logger     *slog.Logger
	observer   Observer
	looked     time.Time // for late facts of deleted executions
}

// New returns a recorder of a log of facts with the given number of partitions. Stop it after its handlers have
// ended.
func New(a Archive, p Publisher, partitions int, logger *slog.Logger, registry prometheus.Registerer) (*Recorder, error) {
	r := &Recorder{archive: a, publisher: p, partitions: partitions, logger: logger, moved: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "verbatim_recorder_moved_facts_total", Help: "Facts that lay in another partition than their execution's and were published again.",
	})}
	if err := registry.Register(r.moved); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	r.batcher = batch.New(limits, r.store)
	return r, nil
}

// Handle archives one fact and returns when it is stored.
func (r *Recorder) Handle(m *message.Message) error {
	e, err := codec.FromMessage(m)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := e.AboutExecution(); err != nil {
		return failure.Permanent(err)
	}
	at, ok := kafka.PositionFromContext(m.Context())
	if !ok {
		return failure.Permanent(fmt.Errorf("message %s says not where it comes from", m.UUID))
	}
	if at.Partition != kafka.PartitionFor([]byte(e.Subject), r.partitions) {
		err := r.move(m, e)
		if err == nil {
			r.moved.Inc()
		}
		return err
	}
	archived := clickhouse.ArchivedEvent{Event: e, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, ReceivedAt: at.Time}
	for _, h := range kafka.HeadersFromContext(m.Context()) {
		archived.Headers = append(archived.Headers, [2]string{h.Key, string(h.Value)})
	}
	return r.batcher.Add(m.Context(), archived, len(e.Payload)+512)
}

// Watched lets an observer know what is archived. It is called before the first Handle.
func (r *Recorder) Watched(by Observer) { r.observer = by }

// HandleControl makes a cancel a fact about its execution, unchanged: the log then tells the whole story. Other commands are no facts.
func (r *Recorder) HandleControl(m *message.Message) error {
	e, err := codec.FromMessage(m)
	if err != nil {
		return failure.Permanent(err)
	}
	if e.Type != events.TypeCancelRequested {
		return nil
	}
	return r.move(m, e)
}

// move publishes a fact where it belongs. Moved twice, it is still one fact.
func (r *Recorder) move(m *message.Message, e events.Event) error {
	if e.Time.IsZero() {
		// A fact without a time happened when it was first received.
		at, _ := kafka.PositionFromContext(m.Context())
		e.Time = at.Time
	}
	again, err := codec.ToMessage(e)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := r.publisher.PublishContext(m.Context(), events.TopicExecutions, again); err != nil {
		return failure.Publishing(fmt.Errorf("publish fact %s where it belongs: %w", e.ID, err))
	}
	return nil
}

// Stop ends what is under way. Facts that were not stored stay unacknowledged.
func (r *Recorder) Stop() { r.batcher.Stop() }

func (r *Recorder) store(ctx context.Context, facts []clickhouse.ArchivedEvent) error {
	if err := retry.Until(ctx, r.logger, "archive facts", func() error { return r.archive.InsertEvents(ctx, facts) }); err != nil {
		return err
	}
	if r.observer != nil {
		slices.SortFunc(facts, func(a, b clickhouse.ArchivedEvent) int { return cmp.Compare(a.Offset, b.Offset) })
		r.observer.Observe(facts)
	}
	return r.erase(ctx, facts)
}
