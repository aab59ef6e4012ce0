package runner

import (
	"context"
	"fmt"
	"time"
)

// Stop takes no more attempts and ends those that are here: it lets them go on for Config.ShutdownGrace, then
// TERM, their grace, KILL, and it returns when everything that was seen of them is published.
//
// When the context has a deadline these steps begin early enough to fit. When the context ends all the
// same, what still runs is killed, and the error says how many attempts have facts that are not acknowledged; the log
// says which facts.
func (r *Runner) Stop(ctx context.Context) error {
	r.mu.Lock()
	r.stopping = true
	left := len(r.attempts)
	r.mu.Unlock()
	r.closeStopped()
	r.AnnounceSoon()
	r.config.Logger.InfoContext(ctx, "runner stops", "runner", r.config.ID, "attempts", left)

	idle := make(chan struct{})
	go func() {
		r.busy.Wait()
		close(idle)
	}()
	term, kill := r.shutdownPlan(ctx)
	for _, step := range []struct {
		after  <-chan time.Time
		action func()
	}{{term, r.closeShutdown}, {kill, r.goHurry}} {
		select {
		case <-idle:
			return r.over(0)
		case <-step.after:
			step.action()
		case <-ctx.Done():
		}
	}
	select {
	case <-idle:
		return r.over(0)
	case <-ctx.Done():
	}
	left = len(r.Running())
	r.abort(fmt.Errorf("%w: %w", ErrStopping, context.Cause(ctx)))
	select {
	case <-idle:
	case <-time.After(lastWait):
		r.lastBeat()
		return fmt.Errorf("stop runner: time is up, and some attempts do not end: %v", r.Running())
	}
	return r.over(left)
}

// lastWait bounds what comes after the end of the context: killing, reaping, and a publisher or a claim that does not
// look at its context.
const lastWait = 5 * time.Second

func (r *Runner) over(left int) error {
	r.lastBeat()
	r.abort(ErrStopping) // Frees the context; nobody waits on it any more.
	r.close()
	if left > 0 {
		return fmt.Errorf("stop runner: time is up, %d attempts were killed or have facts that are not acknowledged (they are kept for the next start)", left)
	}
	return nil
}

// shutdownPlan says when to begin to end what runs, and when to kill what is left. Without a deadline nothing
// has to be killed early: every attempt does that when its own grace is over.
func (r *Runner) shutdownPlan(ctx context.Context) (term, kill <-chan time.Time) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.After(r.config.ShutdownGrace), nil
	}
	left := time.Until(deadline)
	// What is left after the KILL is for reading the pipes and publishing.
	killIn := left - min(5*time.Second, left/4)
	termIn := max(0, min(r.config.ShutdownGrace, killIn-r.config.Grace))
	return time.After(termIn), time.After(killIn)
}
