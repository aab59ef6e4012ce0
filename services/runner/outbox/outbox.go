// Package outbox numbers the facts of one attempt and publishes them in that order.
//
// A fact gets its number, is recorded and gets its place in the queue under one lock, so the numbers have no holes and the queue
// has the order of the numbers. The sender does not take that lock: a record may wait for a disk that is full, and it
// is the sender's work that gives it room. One sender takes everything that waits, up to a batch, and publishes it in
// one call; while that call runs the next batch gathers. So batches are small when the log is fast and large
// when it is slow. A fact that is soon followed by another (Config.Followed) waits a moment for it: a process that ends at once
// costs one call and not three.
//
// A failed publish is tried again with the same messages, for ever, since the log being away is no reason
// to lose a fact. Their ids are fixed by their numbers, so what was written twice is known to be the same.
//
// The queue holds a bounded number of bytes. Output waits for room (AddWhenRoom), which stops the reading of
// the pipes. Every other fact is let in at once (Add): there are a handful per attempt, and a process must
// never wait with its end because its output waits.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
)

// BatchBytes bounds the payloads that a Kafka producer puts into one request, with what is counted for each message on top of its
// payload, so that chunks of 256 KiB fill it.
const BatchBytes = 1<<20 + 64<<10

const batchMessages = 500

// followedWait is how long a fact waits for the one that follows it.
const followedWait = 5 * time.Millisecond

// overheadBytes is counted for each message on top of its payload: headers, ids, bookkeeping.
const overheadBytes = 1 << 10

// ErrClosed says that the outbox takes no more facts.
var ErrClosed = errors.New("outbox is closed")

// Publisher writes messages to the log. It returns nil when all of them are acknowledged by every replica
// in sync, and they are then in the log in the order given. After an error any of them may have been written; the same
// messages are then given again. It is safe for concurrent use and does not change the messages.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Config is what an outbox needs to know.
type Config struct {
	Producer    events.Producer
	Execution   string
	Attempt     uint32
	Traceparent string
	Topic       string
	// LimitBytes bounds what waits to be acknowledged.
	LimitBytes int
	Publisher  Publisher
	// Followed, if not nil, reports whether another fact may be expected within followedWait.
	Followed func(fact proto.Message) bool
	// Record, if not nil, writes a fact down before it is queued; it may wait. It is called for one fact at a time, in order.
	Record func(sequence uint64, at time.Time, fact proto.Message)
	// Acknowledged, if not nil, is called when every fact up to the number is in the log.
	Acknowledged func(sequence uint64)
	// Retried is called for each failed publish. It may be nil.
	Retried func()
	Logger  *slog.Logger
}

// Outbox is the queue of one attempt. It is safe for concurrent use.
type Outbox struct {
	config Config

	// adding is held by who gives a fact its number, until it is queued. mu is taken within it.
	adding sync.Mutex
	last   atomic.Uint64 // The last number given out. It is only written under adding.

	mu      sync.Mutex
	acked   uint64 // The last number acknowledged.
	queue   []*message.Message
	bytes   int // Of the queue and of the batch under way.
	closed  bool
	patient bool          // Everything in the queue may wait for what follows it.
	since   time.Time     // When the first of them came.
	changed chan struct{} // Closed and replaced at every change; who waits, waits for it.
}

// New returns an empty outbox.
func New(c Config) *Outbox {
	return &Outbox{config: c, changed: make(chan struct{})}
}

// Last is the last number that was given out; 0 before the first.
func (o *Outbox) Last() uint64 { return o.last.Load() }

// Resume goes on where a former outbox of the same attempt stopped: facts up to acked are in the log. It comes before
// everything else; Again then queues the facts that were given numbers and may not be there.
func (o *Outbox) Resume(acked uint64) {
	o.acked = acked
	o.last.Store(acked)
}

// Again queues a fact that was recorded before, under the next number.
func (o *Outbox) Again(at time.Time, fact proto.Message) error {
	o.adding.Lock()
	defer o.adding.Unlock()
	return o.queueUp(at, fact, false)
}

// Add takes a fact at once. It fails when the outbox is closed or the fact cannot be encoded; then no number is
// used up.
func (o *Outbox) Add(at time.Time, fact proto.Message) error {
	o.adding.Lock()
	defer o.adding.Unlock()
	return o.queueUp(at, fact, true)
}

// AddWhenRoom waits until there is room for the fact, or until the context ends, and then takes it. One
// that is larger than the whole limit gets in when the queue is empty.
func (o *Outbox) AddWhenRoom(ctx context.Context, at time.Time, fact proto.Message) error {
	size := proto.Size(fact) + overheadBytes
	for {
		o.adding.Lock()
		changed, ok := o.room(size)
		if ok {
			defer o.adding.Unlock()
			return o.queueUp(at, fact, true)
		}
		o.adding.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for room in the outbox: %w", context.Cause(ctx))
		}
	}
}

// room reports whether so much may be queued now, or that it is not to be waited for; else what changes.
func (o *Outbox) room(size int) (changed <-chan struct{}, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed, o.closed || o.bytes == 0 || o.bytes+size <= o.config.LimitBytes
}

// queueUp is called with adding held.
func (o *Outbox) queueUp(at time.Time, fact proto.Message, record bool) error {
	if o.isClosed() {
		return ErrClosed
	}
	e, err := o.config.Producer.Event(o.config.Execution, o.config.Attempt, o.last.Load()+1, at, fact)
	if err != nil {
		return fmt.Errorf("make event: %w", err)
	}
	e.Traceparent = o.config.Traceparent
	m, err := codec.ToMessage(e)
	if err != nil {
		return err
	}
	if record && o.config.Record != nil {
		o.config.Record(o.last.Load()+1, at, fact)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last.Add(1)
	followed := o.config.Followed != nil && o.config.Followed(fact)
	if len(o.queue) == 0 {
		o.patient, o.since = followed, time.Now()
	}
	o.patient = o.patient && followed
	o.queue = append(o.queue, m)
	o.bytes += cost(m)
	o.wake()
	return nil
}

// Close says that no more facts come. Send then returns when everything is acknowledged.
func (o *Outbox) Close() {
	o.adding.Lock()
	defer o.adding.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.wake()
}

func (o *Outbox) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

func (o *Outbox) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// Send publishes until the outbox is closed and everything is acknowledged. When the context ends first it
// says which numbers are not acknowledged. It is called once.
func (o *Outbox) Send(ctx context.Context) error {
	for {
		batch, err := o.next(ctx)
		if err == nil && batch == nil {
			return nil
		}
		if err == nil {
			err = o.publish(ctx, batch)
		}
		if err != nil {
			return o.unsent(err)
		}
		o.acknowledge(batch)
	}
}

func (o *Outbox) unsent(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.acked == o.last.Load() {
		return nil
	}
	return fmt.Errorf("facts %d to %d are not acknowledged: %w", o.acked+1, o.last.Load(), err)
}

// next waits for something to publish and takes a batch of it; nil when there will be no more.
func (o *Outbox) next(ctx context.Context) ([]*message.Message, error) {
	for {
		o.mu.Lock()
		waits := time.Duration(0)
		if len(o.queue) > 0 {
			if o.patient && !o.closed {
				waits = followedWait - time.Since(o.since)
			}
			if waits <= 0 {
				defer o.mu.Unlock()
				return o.take(), nil
			}
		}
		closed, changed := o.closed, o.changed
		o.mu.Unlock()
		if closed {
			return nil, nil
		}
		if err := await(ctx, changed, waits); err != nil {
			return nil, err
		}
	}
}

// await waits for a change, or for as long as it may take, 0 for ever.
func await(ctx context.Context, changed <-chan struct{}, most time.Duration) error {
	var over <-chan time.Time
	if most > 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-changed:
	case <-over:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (o *Outbox) take() []*message.Message {
	n, bytes := 0, 0
	for n < len(o.queue) && n < batchMessages && (n == 0 || bytes+cost(o.queue[n]) <= BatchBytes) {
		bytes += cost(o.queue[n])
		n++
	}
	batch := o.queue[:n:n]
	o.queue = o.queue[n:]
	return batch
}

func (o *Outbox) acknowledge(batch []*message.Message) {
	o.mu.Lock()
	o.acked += uint64(len(batch))
	acked := o.acked
	defer func() {
		o.mu.Unlock()
		if o.config.Acknowledged != nil {
			o.config.Acknowledged(acked)
		}
	}()
	for i, m := range batch {
		o.bytes -= cost(m)
		batch[i] = nil // The queue shares this array: let the payload go.
	}
	o.wake()
}

// publish tries until it succeeds or the context ends.
func (o *Outbox) publish(ctx context.Context, batch []*message.Message) error {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval = 50*time.Millisecond, 5*time.Second
	failures := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := o.try(ctx, batch)
		if err != nil && o.config.Retried != nil {
			o.config.Retried()
		}
		return struct{}{}, err
	}, backoff.WithBackOff(waits), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, wait time.Duration) {
		if failures%20 == 0 {
			o.config.Logger.WarnContext(ctx, "publish failed, trying again", "execution", o.config.Execution, "attempt", o.config.Attempt,
				"failures", failures+1, "wait", wait, "error", err)
		}
		failures++
	}))
	if err == nil && failures > 0 {
		o.config.Logger.InfoContext(ctx, "publish works again", "execution", o.config.Execution, "attempt", o.config.Attempt, "failures", failures)
	}
	return err
}

// try makes one attempt. A panic of the publisher is a failure like any other: it must not take down
// everything else that this process runs. Errors are never backoff.Permanent here, whatever the publisher wrapped.
func (o *Outbox) try(ctx context.Context, batch []*message.Message) (err error) {
	defer func() {
		if r := recover(); r != nil {
			o.config.Logger.ErrorContext(ctx, "publisher panicked", "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("publisher panicked: %v", r)
		}
	}()
	if err := o.config.Publisher.PublishContext(ctx, o.config.Topic, batch...); err != nil {
		return errors.New(err.Error())
	}
	return nil
}

func cost(m *message.Message) int { return len(m.Payload) + overheadBytes }
