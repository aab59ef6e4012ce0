package runner_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

// pulse is a publisher that gets heartbeats; facts go to the log behind it.
type pulse struct {
	*log
	mu      sync.Mutex
	beats   []events.Event
	away    chan struct{} // Not nil: the broker takes nothing until it is closed.
	waiting int           // Calls that wait for the broker, at most.
	waits   int
}

func (p *pulse) PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error {
	if topic != events.TopicRunners {
		return p.log.PublishContext(ctx, topic, msgs...)
	}
	p.mu.Lock()
	away := p.away
	p.waits++
	p.waiting = max(p.waiting, p.waits)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.waits--
		p.mu.Unlock()
	}()
	if away != nil {
		select {
		case <-away:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range msgs {
		e, err := codec.FromMessage(m)
		if err != nil {
			return err
		}
		p.beats = append(p.beats, e)
	}
	return nil
}

func (p *pulse) await(t *testing.T, what string, holds func(*executionv1.RunnerHeartbeat) bool) {
	t.Helper()
	eventually(t, what, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, e := range p.beats {
			if holds(e.Data.(*executionv1.RunnerHeartbeat)) {
				return true
			}
		}
		return false
	})
}

func beating(t *testing.T, p *pulse) *runner.Runner {
	t.Helper()
	r, err := runner.New(runner.Config{ID: "r1", Host: "h1", DataDir: t.TempDir(), Slots: 3, Version: "v9", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, p,
		func(context.Context, *message.Message) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r.Beat()
	return r
}

func TestARunnerSaysThatItLivesUntilItStops(t *testing.T) {
	t.Parallel()
	p := &pulse{log: newLog()}
	r := beating(t, p)
	p.await(t, "first heartbeat", func(b *executionv1.RunnerHeartbeat) bool {
		return b.GetRunner() == "r1" && b.GetHost() == "h1" && b.GetSlots() == 3 && b.GetVersion() == "v9" && b.GetStartedAt() != nil &&
			len(b.GetAgeRecipient()) > 20 && !b.GetStopping()
	})
	m, id := prepared(t, shell("trap 'exit 3' TERM; echo here; while :; do sleep 0.05; done"))
	if err := r.Handle(m); err != nil {
		t.Fatal(err)
	}
	p.awaitOutput(t, id, stdout, "here")
	p.await(t, "what runs", func(b *executionv1.RunnerHeartbeat) bool {
		return len(b.GetRunning()) == 1 && b.GetRunning()[0].GetExecution() == id && b.GetRunning()[0].GetAttempt() == 1
	})
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.beats[len(p.beats)-1].Data.(*executionv1.RunnerHeartbeat)
	if !last.GetStopping() || len(last.GetRunning()) != 0 {
		t.Errorf("the last heartbeat: %v", last)
	}
	for i, e := range p.beats {
		if e.Subject != "r1" || e.Sequence != uint64(i+1) || e.ID == p.beats[0].ID && i > 0 {
			t.Errorf("heartbeat %d is %s of %s", i, e.ID, e.Subject)
		}
	}
}

// A broker that is away costs heartbeats and nothing else: they neither pile up nor hold anything up.
func TestHeartbeatsAreDroppedWhenNobodyTakesThem(t *testing.T) {
	t.Parallel()
	p := &pulse{log: newLog(), away: make(chan struct{})}
	r := beating(t, p)
	m, id := prepared(t, shell("echo fine"))
	if err := r.Handle(m); err != nil {
		t.Fatal(err)
	}
	if s := p.tell(t, id); string(s.output[stdout]) != "fine\n" {
		t.Errorf("output %q", s.output[stdout])
	}
	for range 100 {
		r.AnnounceSoon()
	}
	began := time.Now()
	if err := r.Stop(t.Context()); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %s", took)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.beats) > 0 || p.waiting != 1 {
		t.Errorf("%d heartbeats got through, %d waited at a time", len(p.beats), p.waiting)
	}
}
