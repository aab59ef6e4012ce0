package runner_test

import (
	"errors"
	"sync"
	"testing"

	"verbatim.dev/services/runner"
)

// Work comes and goes while the runner is cordoned and uncordoned: nobody waits for ever, and everything is either taken or refused.
func TestCordonWhileWorkComes(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	m, id := prepared(t, shell("echo whole"))
	if err := f.Cordon(true, "somebody", "a test"); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	over := make(chan struct{})
	both.Go(func() {
		defer close(over)
		for i := range 200 {
			if err := f.Cordon(i%2 == 0, "somebody", "a test"); err != nil {
				t.Error(err)
			}
		}
	})
	for again := true; again; {
		select {
		case <-over:
			again = false
		default:
		}
		other, _ := prepared(t, shell("true"))
		if err := f.Handle(other); err != nil && !errors.Is(err, runner.ErrCordoned) && !errors.Is(err, runner.ErrFull) {
			t.Fatal(err)
		}
	}
	both.Wait()
	if err := f.Handle(m); err != nil { // The last word was that it takes work.
		t.Fatal(err)
	}
	f.log.awaitOutput(t, id, stdout, "whole")
	f.log.tell(t, id)
}
