// Package barrier makes reads see what was written before them.
//
// Rows and archive are written by services that read the log of facts a little later. A reader that
// wants to see everything up to now notes the log's end offsets and waits until the service's consumer
// group has committed them: a group commits an offset only after what lies below it is stored. The wait has
// a budget; a read is never refused because a projection is late, it is only marked as stale.
//
//	request ──► end offsets ──► committed offsets ≥ end? ──yes──► read
//	              ▲                    │ no
//	              │                    └─ ask again after 20 ms, 40 ms … 200 ms, until the budget is spent
//	              └ asked after the request came: an older answer could lack the caller's own write
//
// Any number of requests share the questions to the broker: at most one of each kind is on its way, and
// whoever comes while one is on its way shares the next.
package barrier

import (
	"context"
	"sync"
	"time"
)

// Offsets answers for the log. It is safe for concurrent use. A partition that is absent from an answer
// has offset 0. kafka.Admin is one.
type Offsets interface {
	// EndOffsets returns, by partition, the offset the next record will have.
	EndOffsets(ctx context.Context, topic string) (map[int]int64, error)
	// CommittedOffsets returns, by partition, the offset below which the group has stored everything.
	CommittedOffsets(ctx context.Context, group, topic string) (map[int]int64, error)
}

// AllPartitions is the partition of a read that needs the whole log.
const AllPartitions = -1

// The waits between two questions, and the time one question may take.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = 200 * time.Millisecond
	askTimeout   = 5 * time.Second
)

// Barrier waits for one consumer group on one topic. It is safe for concurrent use.
type Barrier struct {
	ends      *asker
	committed *asker
	stop      context.CancelFunc
	asking    *sync.WaitGroup
}

// New returns a barrier. Stop ends what it has under way.
func New(o Offsets, group, topic string) *Barrier {
	ctx, stop := context.WithCancel(context.Background())
	b := &Barrier{stop: stop, asking: &sync.WaitGroup{}}
	b.ends = newAsker(ctx, b.asking, func(ctx context.Context) (map[int]int64, error) { return o.EndOffsets(ctx, topic) })
	b.committed = newAsker(ctx, b.asking, func(ctx context.Context) (map[int]int64, error) {
		return o.CommittedOffsets(ctx, group, topic)
	})
	return b
}

// Wait returns true when everything that was in the partition (or in all of them) at the time of the call is
// stored, and false when the budget was spent or the broker did not answer within it.
func (b *Barrier) Wait(ctx context.Context, partition int, budget time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	var ends map[int]int64
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		var err error
		if ends == nil {
			ends, err = b.ends.ask(ctx)
		}
		if err == nil {
			var committed map[int]int64
			if committed, err = b.committed.ask(ctx); err == nil && reached(ends, committed, partition) {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// Stored returns the offset below which everything of the partition is stored, and false when the group has
// never committed there.
func (b *Barrier) Stored(ctx context.Context, partition int) (int64, bool, error) {
	committed, err := b.committed.ask(ctx)
	if err != nil {
		return 0, false, err
	}
	offset, ok := committed[partition]
	return offset, ok && offset >= 0, nil
}

// Stop ends every wait's questions and returns when none is on its way.
func (b *Barrier) Stop() {
	b.stop()
	b.ends.closed()
	b.committed.closed()
	b.asking.Wait()
}

func reached(ends, committed map[int]int64, partition int) bool {
	if partition != AllPartitions {
		return committed[partition] >= ends[partition]
	}
	for p, end := range ends {
		if committed[p] < end {
			return false
		}
	}
	return true
}

// asker lets many callers share a question whose answer must be no older than their call.
type asker struct {
	ctx      context.Context
	question func(context.Context) (map[int]int64, error)
	asking   *sync.WaitGroup

	mu sync.Mutex
	// current is on its way; next will be asked when current is answered.
	current, next *answer
}

type answer struct {
	ready   chan struct{}
	offsets map[int]int64
	err     error
}

func newAsker(ctx context.Context, asking *sync.WaitGroup, q func(context.Context) (map[int]int64, error)) *asker {
	return &asker{ctx: ctx, question: q, asking: asking}
}

// ask returns an answer to a question that was put after the call began.
func (a *asker) ask(ctx context.Context) (map[int]int64, error) {
	a.mu.Lock()
	var mine *answer
	switch {
	case a.ctx.Err() != nil:
		a.mu.Unlock()
		return nil, a.ctx.Err()
	case a.current == nil:
		mine = &answer{ready: make(chan struct{})}
		a.current = mine
		a.asking.Go(a.work)
	case a.next == nil:
		mine = &answer{ready: make(chan struct{})}
		a.next = mine
	default:
		mine = a.next
	}
	a.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-mine.ready:
		return mine.offsets, mine.err
	}
}

// closed returns when no call can start work any more; the context has ended before.
func (a *asker) closed() {
	a.mu.Lock()
	defer a.mu.Unlock()
}

// work answers the current question and those that came up meanwhile. That there is none any more, and that whoever asks next has to
// start another one, is one step: two who work would answer one question twice.
func (a *asker) work() {
	a.mu.Lock()
	q := a.current
	a.mu.Unlock()
	for q != nil {
		ctx, cancel := context.WithTimeout(a.ctx, askTimeout)
		q.offsets, q.err = a.question(ctx)
		cancel()
		close(q.ready)
		a.mu.Lock()
		a.current, a.next = a.next, nil
		q = a.current
		a.mu.Unlock()
	}
}
