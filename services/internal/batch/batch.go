// Package batch gathers what many handlers bring one by one into batches, and lets each handler wait
// for its batch: so a Watermill handler acknowledges its message only after the batch is stored.
//
// Batches are flushed one at a time and in the order in which items came. While one is being flushed
// the next is gathered, so a slow store makes batches larger and not more of them. What bounds the
// items is the number of handlers the subscriber lets run.
package batch

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Config says when a batch is full. A batch is flushed when the first limit is reached.
type Config struct {
	// Items is the most items of a batch.
	Items int
	// Bytes is the size from which a batch is full.
	Bytes int
	// Delay is how long the first item of a batch waits for others.
	Delay time.Duration
}

// Batcher gathers items of type T. Its methods are safe for concurrent use.
type Batcher[T any] struct {
	config Config
	flush  func(ctx context.Context, items []T) error

	add    chan entry[T]
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
}

type entry[T any] struct {
	item   T
	bytes  int
	result chan<- error
}

// New starts a batcher. flush owns the items until it returns; it gets the batcher's context, which
// ends with Stop. Its error goes to everybody whose item was in the batch.
func New[T any](c Config, flush func(ctx context.Context, items []T) error) *Batcher[T] {
	ctx, cancel := context.WithCancel(context.Background())
	b := &Batcher[T]{config: c, flush: flush, add: make(chan entry[T]), ctx: ctx, cancel: cancel}
	full := make(chan []entry[T])
	b.done.Add(2)
	go b.gather(full)
	go b.flushAll(full)
	return b
}

// Add puts an item into the next batch and waits until that batch is flushed. When the context ends
// first the item may still be flushed.
func (b *Batcher[T]) Add(ctx context.Context, item T, bytes int) error {
	result := make(chan error, 1)
	select {
	case b.add <- entry[T]{item, bytes, result}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a place in a batch: %w", ctx.Err())
	case <-b.ctx.Done():
		return fmt.Errorf("wait for a place in a batch: %w", b.ctx.Err())
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for a batch: %w", ctx.Err())
	}
}

// Stop ends the flush that is under way through its context and returns when nothing runs any more.
// Items that were not flushed get an error. Call it after those who add have stopped.
func (b *Batcher[T]) Stop() {
	b.cancel()
	b.done.Wait()
}

func (b *Batcher[T]) gather(full chan<- []entry[T]) {
	defer b.done.Done()
	defer close(full)
	var batch []entry[T]
	bytes := 0
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	due := false
	for {
		// A full batch takes no more; a batch is offered when it is due or full.
		add, offer := b.add, full
		if len(batch) >= b.config.Items || bytes >= b.config.Bytes {
			add, due = nil, true
		}
		if !due || len(batch) == 0 {
			offer = nil
		}
		select {
		case e := <-add:
			if len(batch) == 0 {
				timer.Reset(b.config.Delay)
			}
			batch, bytes = append(batch, e), bytes+e.bytes
		case offer <- batch:
			batch, bytes, due = nil, 0, false
			timer.Stop()
		case <-timer.C:
			due = true
		case <-b.ctx.Done():
			answer(batch, fmt.Errorf("batch was not flushed: %w", b.ctx.Err()))
			return
		}
	}
}

func (b *Batcher[T]) flushAll(full <-chan []entry[T]) {
	defer b.done.Done()
	for batch := range full {
		items := make([]T, len(batch))
		for i, e := range batch {
			items[i] = e.item
		}
		answer(batch, b.flush(b.ctx, items))
	}
}

func answer[T any](batch []entry[T], err error) {
	for _, e := range batch {
		e.result <- err
	}
}
