package main

import (
	"context"
	"sync"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/e2e/rig"
	"verbatim.dev/services/internal/wiring"
)

func playRig(args []string) (int, bool) { return rig.Play(args) }

// watcher reads the log of facts.
type watcher struct {
	cancel  context.CancelFunc
	reading sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}
	begun   map[string]bool
	over    map[string]bool
	lines   map[string]*delays
}

// watch reads every partition, from an offset if there is one for it, else from its beginning.
func watch(ctx context.Context, c kafka.Config, from map[int]int64) (*watcher, error) {
	w := &watcher{changed: make(chan struct{}), begun: map[string]bool{}, over: map[string]bool{}, lines: map[string]*delays{}}
	ctx, w.cancel = context.WithCancel(ctx)
	for partition := range wiring.Topics(events.TopicExecutions)[0].Partitions {
		r, err := kafka.NewPartitionReader(c, events.TopicExecutions, partition, from[partition])
		if err != nil {
			w.close()
			return nil, err
		}
		w.reading.Go(func() {
			defer r.Close()
			for {
				record, err := r.Next(ctx)
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					w.take(record)
				}
			}
		})
	}
	return w, nil
}

func (w *watcher) close() {
	w.cancel()
	w.reading.Wait()
}

func (w *watcher) take(record kafka.Record) {
	now := time.Now()
	e, err := codec.FromMessage(record.Message())
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch d := e.Data.(type) {
	case *executionv1.ProcessStarted:
		w.begun[e.Subject] = true
	case *executionv1.OutputSealed:
		w.over[e.Subject] = true
	case *executionv1.OutputChunk:
		if len(d.GetData()) < 64<<10 { // Of the large output nothing is kept.
			if w.lines[e.Subject] == nil {
				w.lines[e.Subject] = &delays{}
			}
			w.lines[e.Subject].take(d.GetData(), now)
		}
		return
	default:
		return
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// sealed waits until the output of all of them is sealed.
func (w *watcher) sealed(ctx context.Context, ids []string) error { return w.until(ctx, ids, w.over) }

// started waits until all of them have a process.
func (w *watcher) started(ctx context.Context, ids []string) error { return w.until(ctx, ids, w.begun) }

func (w *watcher) until(ctx context.Context, ids []string, is map[string]bool) error {
	for {
		w.mu.Lock()
		missing := false
		for _, id := range ids {
			missing = missing || !is[id]
		}
		changed := w.changed
		w.mu.Unlock()
		if !missing {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *watcher) delays(id string) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.lines[id]; d != nil {
		return d.took
	}
	return nil
}
