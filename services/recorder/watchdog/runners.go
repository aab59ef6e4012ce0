package watchdog

import (
	"time"

	"github.com/google/uuid"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// runner is what is known of a runner.
type runner struct {
	id string
	// heard is when something was last read of it, beat when a heartbeat was, in the time since the watchdog was made; 0 is never.
	heard, beat time.Duration
	// beatAt is when its last heartbeat came, by the broker's clock.
	beatAt time.Time
}

// Bounds of what is written to the topic of runners.
const (
	maxBeatBytes = 1 << 20
	maxRunners   = 10_000
	// forgotten is how long a runner that has nothing here is remembered.
	forgotten = 10 * time.Minute
)

// runner returns what is known of a runner, which is nothing at first.
func (w *Watchdog) runner(id string) *runner {
	r := w.runners[id]
	if r == nil {
		r = &runner{id: id}
		w.runners[id] = r
	}
	return r
}

// heard takes a sign of life.
func (w *Watchdog) heard(id string, now time.Duration) *runner {
	r := w.runner(id)
	r.heard = max(r.heard, now)
	return r
}

// Beat takes a heartbeat in the order of the topic, and when the broker got it. Other events are ignored, and so is a heartbeat
// that says to be of another runner than its subject. It is safe for concurrent use.
func (w *Watchdog) Beat(e events.Event, receivedAt time.Time) {
	beat, ok := e.Data.(*executionv1.RunnerHeartbeat)
	if !ok || len(e.Payload) > maxBeatBytes || beat.GetRunner() != e.Subject {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.runners[e.Subject] == nil && len(w.runners) >= maxRunners {
		return
	}
	now := w.elapsed()
	r := w.heard(e.Subject, now)
	r.beat, r.beatAt = now, receivedAt
	for _, has := range beat.GetRunning() {
		key, err := uuid.Parse(has.GetExecution())
		if err != nil {
			continue
		}
		o, known := w.open[key]
		if !known || o.attempt != has.GetAttempt() {
			continue
		}
		o.runner, o.listed = r, now
		switch o.stage {
		case requested, prepared, claimed:
			o.stage = running
		case lost, ended, waiting:
			o.back = true
		}
		w.open[key] = o
	}
}

// forget drops runners of which nothing came for long and that have nothing here.
func (w *Watchdog) forget(now time.Duration) {
	used := map[*runner]bool{}
	for _, o := range w.open {
		if o.runner != nil {
			used[o.runner] = true
		}
	}
	for id, r := range w.runners {
		if !used[r] && now-r.heard > forgotten {
			delete(w.runners, id)
		}
	}
}
