package runner

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// HeartbeatInterval is how often a runner says that it lives.
const HeartbeatInterval = 2 * time.Second

// lastHeartbeat is what the last one may take: a runner that stops waits for it, and no longer.
const lastHeartbeat = time.Second

// heart says that the runner lives, beside everything else. A heartbeat that the log does not take within the interval is
// dropped: an old one is worth nothing, and nothing waits for it.
type heart struct {
	runner   *Runner
	producer events.Producer
	started  time.Time
	soon     chan struct{} // Something changed that others should know at once.
	stop     context.CancelFunc
	beating  sync.WaitGroup

	sequence uint64
	failing  bool
}

// Beat begins to announce the runner on events.TopicRunners, until Stop. It is called once, when the runner takes work.
func (r *Runner) Beat() {
	ctx, stop := context.WithCancel(context.Background())
	now := time.Now()
	h := &heart{
		runner: r, started: now, soon: make(chan struct{}, 1), stop: stop,
		// Each start is a producer of its own, which counts from 1.
		producer: events.Producer{Name: "runner." + now.UTC().Format("20060102T150405.000000000"), Source: r.producer.Source},
	}
	r.mu.Lock()
	r.heart = h
	r.mu.Unlock()
	h.beating.Go(func() { h.run(ctx) })
}

func (h *heart) run(ctx context.Context) {
	tick := time.NewTicker(HeartbeatInterval)
	defer tick.Stop()
	for {
		h.send(ctx, HeartbeatInterval)
		select {
		case <-tick.C:
		case <-h.soon:
		case <-ctx.Done():
			return
		}
	}
}

// AnnounceSoon sends a heartbeat before its time, since something changed.
func (r *Runner) AnnounceSoon() {
	r.mu.Lock()
	h := r.heart
	r.mu.Unlock()
	if h == nil {
		return
	}
	select {
	case h.soon <- struct{}{}:
	default: // One is about to be sent.
	}
}

// lastBeat ends the heartbeats with one that says so.
func (r *Runner) lastBeat() {
	r.mu.Lock()
	h := r.heart
	r.heart = nil
	r.mu.Unlock()
	if h == nil {
		return
	}
	h.stop()
	h.beating.Wait()
	h.send(context.Background(), lastHeartbeat)
}

func (h *heart) send(life context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(life, within)
	defer cancel()
	r := h.runner
	h.sequence++
	e, err := h.producer.Event(r.config.ID, 0, h.sequence, time.Now(), h.heartbeat())
	if err == nil {
		m, encodeErr := codec.ToMessage(e)
		if err = encodeErr; err == nil {
			err = r.publish.PublishContext(ctx, events.TopicRunners, m)
		}
	}
	switch {
	case life.Err() != nil: // The last one is sent in its place.
	case err != nil && !h.failing:
		h.failing = true
		r.config.Logger.WarnContext(ctx, "a heartbeat was dropped, others may take the runner for lost", "error", err)
	case err == nil && h.failing:
		h.failing = false
		r.config.Logger.InfoContext(ctx, "heartbeats are taken again")
	}
}

func (h *heart) heartbeat() *executionv1.RunnerHeartbeat {
	r := h.runner
	beat := &executionv1.RunnerHeartbeat{
		Runner: r.config.ID, Host: r.config.Host, Slots: uint32(r.config.Slots), Version: r.config.Version, StartedAt: timestamppb.New(h.started),
		Running: r.Running(), Cordoned: r.cordoned.Load(), AgeRecipient: r.key.Recipient().String(),
	}
	r.mu.Lock()
	beat.Stopping = r.stopping
	r.mu.Unlock()
	return beat
}
