package tail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/semaphore"

	"verbatim.dev/events/codec"
)

// Bounds of a subscriber's queue when Config says nothing: about the chunks of one second of a fast
// process, and never more memory than a few chunks of the largest size.
const (
	defaultQueueFacts = 1024
	defaultQueueBytes = 2 << 20
)

// Bounds of catching up: how many read the log for themselves at one time, and how much each holds.
const (
	maxCatchingUp = 16
	gatherBytes   = 2 << 20
)

// Config of a hub.
type Config struct {
	Log     Log
	Archive Archive
	// Partition tells an execution's partition.
	Partition func(id string) int
	// QueueFacts and QueueBytes bound what waits for one subscriber; 0 is a good default.
	QueueFacts, QueueBytes int
	Logger                 *slog.Logger
}

// Hub hands the records of each partition to all who follow an execution in it. It is safe for
// concurrent use.
type Hub struct {
	c       Config
	ctx     context.Context
	stop    context.CancelCauseFunc
	readers sync.WaitGroup
	// catchingUp bounds the readers that belong to a single tail.
	catchingUp *semaphore.Weighted

	mu    sync.Mutex
	feeds map[int]*feed
}

// NewHub returns a hub that reads nothing yet.
func NewHub(c Config) *Hub {
	if c.QueueFacts == 0 {
		c.QueueFacts = defaultQueueFacts
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = defaultQueueBytes
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Hub{c: c, ctx: ctx, stop: stop, feeds: map[int]*feed{}, catchingUp: semaphore.NewWeighted(maxCatchingUp)}
}

// Stop ends every tail with ErrStopped and returns when no partition is read any more. Later tails end
// at once.
func (h *Hub) Stop() {
	h.mu.Lock()
	h.stop(ErrStopped)
	h.mu.Unlock()
	h.readers.Wait()
}

// feed reads one partition for its subscribers.
type feed struct {
	hub       *Hub
	partition int
	cancel    context.CancelFunc
	// users counts subscribers; hub.mu guards it.
	users int
	// ready is closed when next is known.
	ready chan struct{}

	mu sync.Mutex
	// next is the offset of the record that is handed out next.
	next int64
	subs map[*subscription]struct{}
	// failed is why the feed ended by itself.
	failed error
}

// subscription is one follower's place in a feed. feed.mu guards its fields.
type subscription struct {
	feed *feed
	id   string
	// queue holds what came since begin, without a hole; after an overflow nothing more is added.
	queue    []Fact
	bytes    int
	overflow bool
	// changed has room for one: something happened since the last look.
	changed chan struct{}
}

// subscribe joins the partition's feed, starting it when there is none, and waits until it knows where
// it stands.
func (h *Hub) subscribe(ctx context.Context, partition int, id string) (*subscription, error) {
	h.mu.Lock()
	if h.ctx.Err() != nil {
		h.mu.Unlock()
		return nil, ErrStopped
	}
	f := h.feeds[partition]
	if f == nil {
		f = &feed{hub: h, partition: partition, ready: make(chan struct{}), subs: map[*subscription]struct{}{}}
		var running context.Context
		running, f.cancel = context.WithCancel(h.ctx)
		h.feeds[partition] = f
		h.readers.Go(func() { f.run(running) })
	}
	f.users++
	h.mu.Unlock()

	s := &subscription{feed: f, id: id, changed: make(chan struct{}, 1)}
	select {
	case <-ctx.Done():
		s.leave()
		return nil, context.Cause(ctx)
	case <-f.ready:
	}
	f.mu.Lock()
	f.subs[s] = struct{}{}
	f.mu.Unlock()
	return s, nil
}

// leave ends the subscription; the last one to leave ends the feed.
func (s *subscription) leave() {
	f, h := s.feed, s.feed.hub
	f.mu.Lock()
	delete(f.subs, s)
	f.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.users--; f.users == 0 {
		f.cancel()
		if h.feeds[f.partition] == f {
			delete(h.feeds, f.partition)
		}
	}
}

// begin empties the queue and returns the offset from which on it will have everything.
func (s *subscription) begin() int64 {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.queue, s.bytes, s.overflow = nil, 0, false
	return s.feed.next
}

var errOverflow = errors.New("the queue was full")

// take waits for facts and returns all there are. After errOverflow the subscriber begins anew.
func (s *subscription) take(ctx context.Context) ([]Fact, error) {
	for {
		s.feed.mu.Lock()
		facts, overflow, failed := s.queue, s.overflow, s.feed.failed
		s.queue, s.bytes = nil, 0
		s.feed.mu.Unlock()
		switch {
		case len(facts) > 0:
			return facts, nil
		case overflow:
			return nil, errOverflow
		case failed != nil:
			return nil, failed
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.changed:
		}
	}
}

func (s *subscription) wake() {
	select {
	case s.changed <- struct{}{}:
	default: // A look is due already.
	}
}

// run reads until the context ends, or until the log says that what comes next is gone.
func (f *feed) run(ctx context.Context) {
	wait := pauses()
	for {
		end, err := f.hub.c.Log.EndOffset(ctx, f.partition)
		if err == nil {
			f.mu.Lock()
			f.next = end
			f.mu.Unlock()
			close(f.ready)
			break
		}
		if !f.hub.pause(ctx, wait, "find the end of the log", f.partition, err) {
			return
		}
	}
	wait.Reset()
	err := f.hub.read(ctx, f.partition, func() int64 { return f.next }, func(r Record) bool {
		f.handOut(r)
		return true
	})
	if ctx.Err() != nil {
		return
	}
	f.hub.mu.Lock()
	if f.hub.feeds[f.partition] == f {
		delete(f.hub.feeds, f.partition) // Who comes next starts at the end of the log again.
	}
	f.hub.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
	for s := range f.subs {
		s.wake()
	}
}

// handOut gives a record to everybody who follows its execution and moves on.
func (f *feed) handOut(r Record) {
	subject := subjectOf(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = r.Offset + 1
	var fact Fact
	decoded := false
	for s := range f.subs {
		if s.id != subject || s.overflow {
			continue
		}
		if !decoded {
			var ok bool
			if fact, ok = factOf(f.partition, r); !ok {
				return
			}
			decoded = true
		}
		if len(s.queue) >= f.hub.c.QueueFacts || s.bytes+len(r.Value) > f.hub.c.QueueBytes && len(s.queue) > 0 {
			s.overflow = true
		} else {
			s.queue, s.bytes = append(s.queue, fact), s.bytes+len(r.Value)
		}
		s.wake()
	}
}

// read hands records to handle, from the offset that from returns, until handle returns false. A reader that fails is
// replaced. It returns nil when handle had enough, else why it cannot go on.
func (h *Hub) read(ctx context.Context, partition int, from func() int64, handle func(Record) bool) error {
	wait := pauses()
	for {
		got, err := h.readOnce(ctx, partition, from(), handle)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrOffsetGone):
			return fmt.Errorf("read partition %d from offset %d: %w", partition, from(), err)
		}
		if got {
			wait.Reset()
		}
		if !h.pause(ctx, wait, "read the log", partition, err) {
			return context.Cause(ctx)
		}
	}
}

func (h *Hub) readOnce(ctx context.Context, partition int, from int64, handle func(Record) bool) (got bool, err error) {
	r, err := h.c.Log.Read(partition, from)
	if err != nil {
		return false, err
	}
	defer func() {
		if err := r.Close(); err != nil {
			h.c.Logger.WarnContext(ctx, "a reader of the log did not close", "partition", partition, "error", err)
		}
	}()
	for {
		record, err := r.Next(ctx)
		if err != nil {
			return got, err
		}
		if record.Offset < from {
			continue // A fetch may begin in the middle of a batch.
		}
		got = true
		if !handle(record) {
			return true, nil
		}
	}
}

func pauses() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, 5*time.Second
	return b
}

// pause waits before the next try; false when the context ended first.
func (h *Hub) pause(ctx context.Context, wait *backoff.ExponentialBackOff, doing string, partition int, why error) bool {
	if ctx.Err() != nil {
		return false
	}
	next := wait.NextBackOff()
	h.c.Logger.WarnContext(ctx, "the log does not answer, trying again", "doing", doing, "partition", partition, "wait", next, "error", why)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(next):
		return true
	}
}

// subjectOf says cheaply which execution a record is about.
func subjectOf(r Record) string {
	if s, ok := r.Headers["ce_subject"]; ok {
		return s
	}
	return string(r.Key) // Structured mode; the key is the subject by contract, and factOf checks it.
}

// factOf decodes a record; false when it is no event of the execution that subjectOf said.
func factOf(partition int, r Record) (Fact, bool) {
	e, err := codec.Decode(r.Headers, r.Value)
	if err != nil || e.Subject != subjectOf(r) {
		return Fact{}, false
	}
	return Fact{Event: e, Partition: partition, Offset: r.Offset, ReceivedAt: r.Time}, true
}
