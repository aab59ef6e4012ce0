package runner_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"verbatim.dev/services/runner"
)

// A runner that is full leaves work to one that is not, until it has a free slot.
func TestAFullRunnerLeavesWorkToOthers(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) {
		c.Slots = 1
		c.OthersFree = func(context.Context) (bool, error) { return true, nil }
	})
	fifo := mkfifo(t)
	f.start(t, shell(`read x <`+fifo))
	if paused, _ := f.Paused(); paused {
		t.Fatal("it is paused while nothing waits")
	}
	m, _ := prepared(t, shell("echo second"))
	if err := f.Handle(m); !errors.Is(err, runner.ErrFull) {
		t.Fatalf("what waits for a slot: %v, want %v", err, runner.ErrFull)
	}
	paused, changed := f.Paused()
	if !paused {
		t.Fatal("it is not paused")
	}
	other, _ := prepared(t, shell("echo third"))
	if err := f.Handle(other); !errors.Is(err, runner.ErrFull) {
		t.Fatalf("what comes while it is paused: %v, want %v", err, runner.ErrFull)
	}
	writeFIFO(t, fifo, "go\n")
	<-changed
	if paused, _ := f.Paused(); paused {
		t.Fatal("it is paused and has a free slot")
	}
	m, id := prepared(t, shell("echo second"))
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	f.log.awaitOutput(t, id, stdout, "second")
	f.log.tell(t, id)
}

// When nobody else has a free slot either, or nobody knows, work waits where it is.
func TestAFullRunnerKeepsWorkWhenOthersAreFull(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	f := newRunner(t, func(c *runner.Config) {
		c.Slots = 1
		c.OthersFree = func(context.Context) (bool, error) {
			if asked.Add(1) == 1 {
				return false, errors.New("the broker is away")
			}
			return false, nil
		}
	})
	fifo := mkfifo(t)
	f.start(t, shell(`read x <`+fifo))
	m, id := prepared(t, shell("echo second"))
	handled := make(chan error, 1)
	go func() { handled <- f.Handle(m) }()
	eventually(t, "two questions", func() bool { return asked.Load() >= 2 })
	select {
	case err := <-handled:
		t.Fatalf("it does not wait: %v", err)
	default:
	}
	writeFIFO(t, fifo, "go\n")
	if err := <-handled; err != nil {
		t.Fatal(err)
	}
	f.log.awaitOutput(t, id, stdout, "second")
	f.log.tell(t, id)
}
