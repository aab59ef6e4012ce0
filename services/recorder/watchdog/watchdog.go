package watchdog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
)

// Archive has the facts that the recorder stored.
type Archive interface {
	// Stories yields what is archived of executions but their output, in no order; an execution that is not there is left out.
	Stories(ctx context.Context, ids []string) iter.Seq2[*clickhouse.Story, error]
}

// Rows says which executions are open. It may be late.
type Rows interface {
	OpenExecutions(ctx context.Context, since time.Time) iter.Seq2[clickhouse.OpenExecution, error]
	// LongOpenExecutions yields those from before, of which something is still expected however old they are. It costs more.
	LongOpenExecutions(ctx context.Context, before time.Time) iter.Seq2[clickhouse.OpenExecution, error]
}

// Publisher writes messages to a topic. It returns nil only when every message is kept.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Watchdog watches the executions of the partitions that this recorder owns. Its methods are safe for concurrent use.
type Watchdog struct {
	c         Config
	archive   Archive
	rows      Rows
	publisher Publisher
	admin     *kafka.Admin
	began     time.Time
	metrics   *metrics

	mu      sync.Mutex
	owned   map[int]*ownership
	open    map[uuid.UUID]entry
	runners map[string]*runner
	// base is since when silence counts.
	base     time.Duration
	scanSoon bool
	// longSoon asks for the executions from before the horizon too. What is in the table once stays there, so that is for new partitions.
	longSoon bool
	// queues is how many partitions the queue of work has.
	queues int

	// The rest belongs to the goroutine of passes, but for beatsRead.
	beatsRead offset
	beatsEnd  int64
	passed    time.Duration
	scanned   time.Duration
	complains bool
	unread    map[int]int64         // Where in the requests to go on, by partition.
	aside     map[int]time.Duration // Until when to leave requests alone, by partition.
	searched  time.Duration         // When the queue of work was last searched.

	stop    context.CancelFunc
	running sync.WaitGroup
}

// ownership is a partition of the log of facts that is this recorder's until the context ends.
type ownership struct {
	ctx context.Context
	// want is an end of the partition that was seen; set says that there is one. When all below it is archived, what the watchdog looks
	// at is as it was then, or newer.
	want int64
	set  bool
}

// New returns a watchdog. Start begins to watch.
func New(c Config, a Archive, r Rows, p Publisher) (*Watchdog, error) {
	if err := errors.Join(c.Validate(), c.Kafka.Validate()); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	c = c.withDefaults()
	w := &Watchdog{
		c: c, archive: a, rows: r, publisher: p, began: c.Clock.Now(),
		owned: map[int]*ownership{}, open: map[uuid.UUID]entry{}, runners: map[string]*runner{}, unread: map[int]int64{}, aside: map[int]time.Duration{},
	}
	var err error
	if w.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	if w.admin, err = kafka.NewAdmin(c.Kafka); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return w, nil
}

// elapsed is the time since the watchdog was made. It is never 0, which stands for never.
func (w *Watchdog) elapsed() time.Duration { return w.c.Clock.Now().Sub(w.began) + 1 }

// Owned says that a partition of the log of facts is this recorder's until the context ends.
func (w *Watchdog) Owned(owned context.Context, partition int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owned[partition] = &ownership{ctx: owned}
	w.scanSoon, w.longSoon = true, true
}

// owns says whether a partition is this recorder's now.
func (w *Watchdog) owns(partition int) bool {
	o := w.owned[partition]
	return o != nil && o.ctx.Err() == nil
}

// anew begins to count every silence anew: for a while nobody could have been heard.
func (w *Watchdog) anew() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.base = w.elapsed()
	for _, o := range w.owned {
		o.set = false
	}
}

// Start begins to watch, until Stop.
func (w *Watchdog) Start(ctx context.Context) {
	ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
	w.anew()
	w.running.Go(func() { w.listen(ctx) })
	w.running.Go(func() {
		for {
			select {
			case <-w.c.Clock.After(w.c.Sweep):
			case <-ctx.Done():
				return
			}
			if err := w.pass(ctx); err != nil && ctx.Err() == nil && !w.complains {
				w.complains = true
				w.c.Logger.WarnContext(ctx, "the watchdog cannot watch, nobody is lost meanwhile", "error", err)
			} else if err == nil && w.complains {
				w.complains = false
				w.c.Logger.InfoContext(ctx, "the watchdog watches again")
			}
		}
	})
}

// Stop ends it. What it had under way is done again by whoever owns the partitions next.
func (w *Watchdog) Stop() error {
	if w.stop != nil {
		w.stop()
		w.running.Wait()
	}
	return w.admin.Close()
}
