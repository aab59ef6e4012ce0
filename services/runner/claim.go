package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
)

// errUnanswered says that a claim failed so that it may be this runner's all the same: the broker may have it, and only its answer was lost.
// Then it brings the message to nobody again.
var errUnanswered = errors.New("whether the claim is this runner's is being asked")

// Times for a claim without an answer. It is asked about every askClaim, each time for askTime at most. That nobody has claimed the
// message is believed after claimTime, when no commit can be on its way to the broker any more.
const (
	askClaim  = 500 * time.Millisecond
	askTime   = 5 * time.Second
	claimTime = 15 * time.Second
)

// Whose says whose an attempt is.
type Whose int

// Nobodys: nobody has claimed it, so the broker brings it again.
const (
	Nobodys Whose = iota
	Mine
	Anothers
)

func keyOf(work events.Event) string { return fmt.Sprintf("%s/%d", work.Subject, work.Attempt) }

// own gets a slot and the claim. A cancelled attempt needs no slot: nothing of it will run.
func (r *Runner) own(a *attempt, m *message.Message) error {
	select {
	case <-a.cancelled:
	default:
		if err := r.awaitSlot(a, m); err != nil {
			return err
		}
	}
	launch := a.launchOf(m)
	if err := a.begin(launch); err != nil {
		a.forget()
		return fmt.Errorf("write down the claim: %w", err)
	}
	keep := false
	defer func() {
		if !keep { // Also when the claim panics.
			a.forget()
		}
	}()
	err := r.claim(m.Context(), m)
	switch {
	case err == nil:
		keep = true
		r.enter(a)
		return nil
	case r.config.Committed == nil:
		return fmt.Errorf("claim attempt: %w", err)
	default:
		keep = true
		a.past.launch = &launch
		r.mu.Lock()
		defer r.mu.Unlock()
		a.unanswered = true
		return fmt.Errorf("claim attempt: %w (%w)", err, errUnanswered)
	}
}

// enter counts an attempt that is claimed.
func (r *Runner) enter(a *attempt) {
	a.owned()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.add(a.key, struct{}{}, time.Now())
	a.claimed, a.unanswered = true, false
	r.count(a, 1)
}

// claimAgain claims a message that came again. For an attempt whose first claim has no answer that is the answer.
func (r *Runner) claimAgain(key string, m *message.Message) error {
	err := r.claim(m.Context(), m)
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.attempts[key]; a != nil && a.claims > 0 {
		a.claims--
		a.granted = a.granted || err == nil
	}
	if err != nil {
		return fmt.Errorf("claim attempt again: %w", err)
	}
	return nil
}

// settle finds out whether a claim without an answer is this runner's, and runs the attempt or forgets it. When the runner stops before,
// that is left to the next start.
func (r *Runner) settle(a *attempt) {
	begun := time.Now()
	var told error
	for {
		whose, err := r.ask(a)
		switch {
		case whose == Mine:
			r.enter(a)
			a.log.Info("claim whose answer was lost is this runner's")
			r.run(a)
			return
		case err != nil && told == nil:
			told = err
			a.log.Warn("whether the claim is this runner's is not known, it is asked again", "error", err)
		case err == nil && (whose == Anothers || time.Since(begun) > claimTime) && r.giveUp(a):
			a.forget()
			r.dismiss(a)
			return
		}
		select {
		case <-time.After(askClaim):
		case <-r.stopped:
			_ = a.journal.Close()
			r.dismiss(a)
			return
		}
	}
}

// ask asks whose a claim is.
func (r *Runner) ask(a *attempt) (Whose, error) {
	r.mu.Lock()
	granted := a.granted
	r.mu.Unlock()
	if granted {
		return Mine, nil
	}
	ctx, cancel := context.WithTimeout(r.life, askTime)
	defer cancel()
	return r.asked(ctx, a.past.launch)
}

// giveUp ends the waiting for an answer, unless the message is being claimed again at the moment, or was.
func (r *Runner) giveUp(a *attempt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.claims > 0 || a.granted {
		return false
	}
	a.unanswered = false
	return true
}
