// Package sink takes a topic's messages into a store, many at a time: gather, decode, store, acknowledge.
//
//	messages ──► gather ──► decode ──► store ──► acknowledge
//
// The three run beside each other, each on a batch of its own, and hand on in the order in which the messages came: while one
// batch is stored, the next one is decoded and the one after that gathered. So a slow store makes batches larger and not more of
// them, and what is in memory is three batches, however far behind the sink is: what is not gathered stays with the subscriber.
//
// A message is acknowledged after its batch was stored, and given back (Nack) when it was not. A router (package router) does the same
// with one goroutine and one decision for each message; a sink is for those who have one decision for all.
package sink

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/services/internal/batch"
)

// Config of a sink.
type Config[T any] struct {
	// Limits say when a batch is full. Bytes counts payloads and 256 for each message.
	Limits batch.Config
	// Decode returns what is stored of a message; false: nothing is, and the message is acknowledged with its batch. It is called by
	// several goroutines at once.
	Decode func(m *message.Message) (T, bool)
	// Store stores a batch, in the order in which its messages came. It is called by one goroutine and waits as long as it takes; its context
	// ends with Stop. After an error all of the batch is given back.
	Store func(ctx context.Context, items []T) error
	// Watch, if not nil, is told of every batch that was stored, and when its first message came.
	Watch func(messages []*message.Message, began time.Time)
}

// Sink stores messages. Make it with New; it runs once.
type Sink[T any] struct {
	config Config[T]
	ctx    context.Context
	cancel context.CancelFunc
}

// New returns a sink that does nothing until it runs.
func New[T any](c Config[T]) *Sink[T] {
	ctx, cancel := context.WithCancel(context.Background())
	return &Sink[T]{config: c, ctx: ctx, cancel: cancel}
}

// messages of a batch, and when the first one came.
type gathered struct {
	messages []*message.Message
	began    time.Time
}

type decoded[T any] struct {
	gathered
	items []T
}

// Run stores messages until the channel is closed. What is not stored by then is given back.
func (s *Sink[T]) Run(messages <-chan *message.Message) {
	full := make(chan gathered)
	ready := make(chan decoded[T])
	var running sync.WaitGroup
	running.Go(func() {
		defer close(ready)
		for g := range full {
			ready <- decoded[T]{g, s.decode(g.messages)}
		}
	})
	running.Go(func() {
		for d := range ready {
			s.store(d)
		}
	})
	s.gather(messages, full)
	close(full)
	running.Wait()
}

// Stop ends the store that is under way, and every later one, through its context.
func (s *Sink[T]) Stop() { s.cancel() }

// gather fills batches until there are no messages any more.
func (s *Sink[T]) gather(messages <-chan *message.Message, full chan<- gathered) {
	limits := s.config.Limits
	var g gathered
	bytes := 0
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	due := false
	for {
		// A full batch takes no more; a batch is offered when it is due or full.
		in, offer := messages, full
		if len(g.messages) >= limits.Items || bytes >= limits.Bytes {
			in, due = nil, true
		}
		if !due || len(g.messages) == 0 {
			offer = nil
		}
		select {
		case m, ok := <-in:
			if !ok {
				giveBack(g.messages) // The subscriber waited for them as long as it does.
				return
			}
			if len(g.messages) == 0 {
				g.began = time.Now()
				timer.Reset(limits.Delay)
			}
			g.messages = append(g.messages, m)
			bytes += len(m.Payload) + 256
		case offer <- g:
			g, bytes, due = gathered{}, 0, false
			timer.Stop()
		case <-timer.C:
			due = true
		}
	}
}

// decode decodes on every processor, and keeps the order.
func (s *Sink[T]) decode(messages []*message.Message) []T {
	const share = 256
	parts := min(runtime.GOMAXPROCS(0), len(messages)/share+1)
	results := make([][]T, parts)
	var running sync.WaitGroup
	for i := range parts {
		from, to := i*len(messages)/parts, (i+1)*len(messages)/parts
		running.Go(func() {
			items := make([]T, 0, to-from)
			for _, m := range messages[from:to] {
				// What was taken away in the meantime belongs to somebody else.
				if m.Context().Err() != nil {
					continue
				}
				if item, ok := s.config.Decode(m); ok {
					items = append(items, item)
				}
			}
			results[i] = items
		})
	}
	running.Wait()
	all := results[0]
	for _, more := range results[1:] {
		all = append(all, more...)
	}
	return all
}

func (s *Sink[T]) store(d decoded[T]) {
	err := s.ctx.Err()
	if err == nil && len(d.items) > 0 {
		err = s.config.Store(s.ctx, d.items)
	}
	if err != nil {
		giveBack(d.messages)
		return
	}
	for _, m := range d.messages {
		m.Ack() // Of one that was taken away it means nothing.
	}
	if s.config.Watch != nil {
		s.config.Watch(d.messages, d.began)
	}
}

func giveBack(messages []*message.Message) {
	for _, m := range messages {
		m.Nack()
	}
}
