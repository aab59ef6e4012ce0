package files

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/internal/batch"
	"verbatim.dev/services/internal/retry"
)

// Archive is what artifacts are made of.
type Archive interface {
	// Output yields the bytes [from, to) of a stream by rising offset, each at most once; to 0 is the end.
	Output(ctx context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[clickhouse.Chunk, error]
	// LastOffsets returns, for those of the attempts that have facts of the types, the highest Kafka offset of these.
	LastOffsets(ctx context.Context, attempts []clickhouse.Attempt, types ...string) (map[clickhouse.Attempt]int64, error)
	// AttemptFacts returns an attempt's facts of the types in the order of their Kafka offsets.
	AttemptFacts(ctx context.Context, a clickhouse.Attempt, types ...string) ([]clickhouse.ArchivedEvent, error)
}

// Barrier waits until the archive has everything that is in a partition of the log at the time of the call.
type Barrier interface {
	Wait(ctx context.Context, partition int, budget time.Duration) bool
}

// Publisher writes messages to a topic. It returns nil only when every message is kept.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Config of a Recorder.
type Config struct {
	Archive   Archive
	Barrier   Barrier
	Store     *artifact.Store
	Publisher Publisher
	// Position says where a message comes from. Default kafka.PositionFromContext.
	Position func(ctx context.Context) (kafka.Position, bool)
	// Partitions is how many the log of facts has.
	Partitions int
	// Compression of artifacts: artifact.Plain or artifact.Zstd.
	Compression string
	// PartBytes and PartDelay say when what a running process wrote becomes a part: when so much came, or when the first of
	// it is so old. Defaults 16 MiB and 10 s.
	PartBytes uint64
	PartDelay time.Duration
	// AgainDelay is the least time between two makings of one artifact; it is at least ten times what the last one took. Default 10 s.
	AgainDelay time.Duration
	Logger     *slog.Logger
	Registry   prometheus.Registerer
}

// ends are the facts that an attempt's artifacts are made at.
var ends = []string{events.TypeOutputSealed, events.TypeRunnerLost}

const (
	// makings bounds the artifacts that are made at one time, flushes the attempts that are flushed.
	makings = 3
	flushes = 2
	// forgetAfter is how long an attempt is remembered with which nothing happens, maxKnown how many are then.
	forgetAfter = 10 * time.Minute
	maxKnown    = 50_000
)

// Recorder handles facts. It is safe for concurrent use.
type Recorder struct {
	Config
	metrics *metrics
	making  *semaphore.Weighted
	lookups *batch.Batcher[*attempt]
	outage  outage

	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup
	// gate guards stopped. It is taken with an attempt's mu held, and mu is not: whoever has mu takes an attempt's (look).
	gate    sync.Mutex
	stopped bool

	mu    sync.Mutex
	known map[clickhouse.Attempt]*attempt
}

// New returns a recorder of artifacts. Stop it after its handlers have ended.
func New(c Config) (*Recorder, error) {
	if c.Position == nil {
		c.Position = kafka.PositionFromContext
	}
	if c.PartBytes == 0 {
		c.PartBytes = 16 << 20
	}
	if c.PartDelay == 0 {
		c.PartDelay = 10 * time.Second
	}
	if c.AgainDelay == 0 {
		c.AgainDelay = 10 * time.Second
	}
	r := &Recorder{Config: c, making: semaphore.NewWeighted(makings), known: map[clickhouse.Attempt]*attempt{}, outage: outage{logger: c.Logger}}
	var err error
	if r.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, err
	}
	r.life, r.end = context.WithCancel(context.Background())
	r.lookups = batch.New(batch.Config{Items: 2000, Bytes: 2000, Delay: 100 * time.Millisecond}, r.lookUp)
	due := make(chan *attempt)
	for range flushes {
		r.running.Go(func() {
			for a := range due {
				r.flush(a)
			}
		})
	}
	r.running.Go(func() { r.watch(due) })
	return r, nil
}

// Stop ends what is under way. What was not recorded stays unacknowledged.
func (r *Recorder) Stop() {
	r.gate.Lock()
	r.stopped = true
	r.gate.Unlock()
	r.end()
	r.lookups.Stop()
	r.running.Wait()
}

// Handle takes one fact. It returns nil when the artifacts do not lack what it says.
func (r *Recorder) Handle(m *message.Message) error {
	e, err := codec.FromMessage(m)
	if err != nil || e.AboutExecution() != nil {
		return nil //nolint:nilerr // It is dead-lettered by the archive's consumer.
	}
	at, ok := r.Position(m.Context())
	if !ok || at.Partition != kafka.PartitionFor([]byte(e.Subject), r.Partitions) {
		return nil // It is published again where it belongs.
	}
	name := clickhouse.Attempt{ID: e.Subject, Number: e.Attempt}
	switch d := e.Data.(type) {
	case *executionv1.OutputSealed, *executionv1.RunnerLost:
		a := r.attempt(name, at.Partition)
		a.endedAt(at.Offset)
		return r.record(m.Context(), a)
	case *executionv1.ExecutionDeleted:
		return r.erase(m.Context(), e.Subject, at.Partition)
	case *executionv1.OutputChunk:
		if events.StreamName(d.GetStream()) == "" {
			return nil
		}
		a := r.attempt(name, at.Partition)
		last, err := r.lastEnd(m.Context(), a)
		if err != nil {
			return err
		}
		if last >= 0 && at.Offset > last {
			return r.record(m.Context(), a)
		}
		if last < 0 {
			a.received(uint64(len(d.GetData())))
		}
	}
	return nil
}

// begin runs work that Stop waits for; false when there is no more.
func (r *Recorder) begin(work func()) bool {
	r.gate.Lock()
	defer r.gate.Unlock()
	if !r.stopped {
		r.running.Go(work)
	}
	return !r.stopped
}

// attempt returns what is remembered of an attempt.
func (r *Recorder) attempt(name clickhouse.Attempt, partition int) *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.known[name]
	if a == nil {
		a = &attempt{name: name, partition: partition, lastEnd: -1}
		r.known[name] = a
	}
	a.touched = time.Now()
	return a
}

// lastEnd is the offset of the last end of an attempt, -1 when there is none.
func (r *Recorder) lastEnd(ctx context.Context, a *attempt) (int64, error) {
	if last, known := a.end(); known {
		return last, nil
	}
	if err := r.lookups.Add(ctx, a, 1); err != nil {
		return 0, fmt.Errorf("ask whether attempt %d of %s has ended: %w", a.name.Number, a.name.ID, err)
	}
	last, _ := a.end()
	return last, nil
}

// lookUp asks the archive about attempts that were met for the first time.
func (r *Recorder) lookUp(ctx context.Context, attempts []*attempt) error {
	names := make([]clickhouse.Attempt, len(attempts))
	for i, a := range attempts {
		names[i] = a.name
	}
	return retry.Until(ctx, r.Logger, "ask which attempts have ended", func() error {
		last, err := r.Archive.LastOffsets(ctx, names, ends...)
		if err != nil {
			return err
		}
		for _, a := range attempts {
			if offset, ok := last[a.name]; ok {
				a.endedAt(offset)
			}
			a.lookedUp()
		}
		return nil
	})
}

// watch finds the attempts that are to be flushed, and forgets those with which nothing happens.
func (r *Recorder) watch(due chan<- *attempt) {
	defer close(due)
	tick := time.NewTicker(min(time.Second, r.PartDelay/2))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.life.Done():
			return
		}
		for _, a := range r.look() {
			select {
			case due <- a:
			case <-r.life.Done():
				return
			}
		}
	}
}

func (r *Recorder) look() (due []*attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	crowded := len(r.known) > maxKnown
	for name, a := range r.known {
		isDue, idle := a.due(now, r.PartBytes, r.PartDelay)
		switch {
		case isDue:
			due = append(due, a)
		case idle && (crowded || now.Sub(a.touched) > forgetAfter):
			delete(r.known, name)
		}
	}
	return due
}

// outage logs that the store is away once, and not for every attempt.
type outage struct {
	logger *slog.Logger
	mu     sync.Mutex
	since  time.Time
	said   time.Time
}

const sayAgain = time.Minute

func (o *outage) failed(ctx context.Context, a *attempt, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if errors.Is(err, context.Canceled) || time.Since(o.said) < sayAgain {
		return
	}
	if o.since.IsZero() {
		o.since = time.Now()
	}
	o.said = time.Now()
	o.logger.ErrorContext(ctx, "artifacts cannot be recorded, they are tried again", "execution", a.name.ID, "attempt", a.name.Number, "error", err)
}

func (o *outage) worked(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.logger.InfoContext(ctx, "artifacts are recorded again", "away", time.Since(o.since).Round(time.Second))
	}
	o.since, o.said = time.Time{}, time.Time{}
}
