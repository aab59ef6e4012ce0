package kafka

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery is one message handed out once. It is also that message's context. It is a context of its own kind,
// because one of package context registers with its parent, which all messages of a subscription share, and most
// messages are settled without anybody having looked at theirs. Values come from the parent; the end comes from the
// partition, which cancels whatever it has handed out before it ends.
type delivery struct {
	partition *partition
	record    *Record
	offset    int64
	msg       *message.Message
	claimed   atomic.Bool

	mu    sync.Mutex
	done  chan struct{} // made when somebody asks
	ended bool
	after map[*func()]struct{}
}

var _ context.Context = (*delivery)(nil)

// make fills in a new delivery of the record. It takes its part of a headerText and returns the rest.
func (d *delivery) make(p *partition, r *Record, text string) (rest string) {
	r.Assignment = p.number
	d.partition, d.record, d.offset = p, r, r.Offset
	d.msg, rest = r.message(text)
	d.msg.SetContext(d)
	return rest
}

// Deadline implements context.Context.
func (d *delivery) Deadline() (time.Time, bool) { return d.partition.sub.messages.Deadline() }

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Done implements context.Context.
func (d *delivery) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.done != nil:
	case d.ended:
		d.done = closed
	default:
		d.done = make(chan struct{})
	}
	return d.done
}

// Err implements context.Context.
func (d *delivery) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return context.Canceled
	}
	return nil
}

// AfterFunc lets package context watch this context without a goroutine of its own, see context.AfterFunc.
func (d *delivery) AfterFunc(f func()) (stop func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		go f()
		return func() bool { return false }
	}
	if d.after == nil {
		d.after = map[*func()]struct{}{}
	}
	d.after[&f] = struct{}{}
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		_, waiting := d.after[&f]
		delete(d.after, &f)
		return waiting
	}
}

// cancel ends the context; more than once is once.
func (d *delivery) cancel() {
	d.mu.Lock()
	if d.ended {
		d.mu.Unlock()
		return
	}
	d.ended = true
	if d.done != nil {
		close(d.done)
	}
	after := d.after
	d.after = nil
	d.mu.Unlock()
	for f := range after {
		go (*f)()
	}
}

// Value serves PositionFromContext, HeadersFromContext, Stopping and CommitSync.
func (d *delivery) Value(key any) any {
	switch key.(type) {
	case positionKey:
		return &d.record.Position
	case headersKey:
		return d.record.Headers
	case deliveryKey:
		return d
	case stoppingKey:
		return d.partition.sub.stop.Done()
	}
	return d.partition.sub.messages.Value(key)
}
