package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ErrFull says that every slot is taken while another runner has a free one. The message belongs to that one.
var ErrFull = errors.New("runner is full, and another one is not")

// askEvery is how long an attempt waits for a slot before others are asked whether they have one, and then from question to question.
const askEvery = 2 * time.Second

// awaitSlot waits for a slot. No error and no slot: the attempt was cancelled.
func (r *Runner) awaitSlot(a *attempt, m *message.Message) error {
	ctx, answered := context.WithCancel(m.Context())
	defer answered()
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	for {
		_, changed := r.Paused()
		if err := r.refuses(); err != nil {
			return err
		}
		select {
		case r.slots <- struct{}{}:
			a.hasSlot = true
			return nil
		case <-a.cancelled:
			return nil
		case <-changed:
		case <-ask.C:
			go r.askOthers(ctx)
		case <-r.stopped:
			return ErrStopping
		case <-m.Context().Done():
			return fmt.Errorf("wait for a slot: %w", context.Cause(m.Context()))
		}
	}
}

// freeSlot gives a slot back, and takes new attempts again.
func (r *Runner) freeSlot() {
	<-r.slots
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if r.yields {
		r.yields = false
		r.pauseChange()
		r.config.Logger.Info("runner has a free slot and takes work again")
	}
}

// askOthers lets the runner yield when another one has a free slot. One question at a time is enough for all that wait.
func (r *Runner) askOthers(ctx context.Context) {
	if r.config.OthersFree == nil || !r.asking.CompareAndSwap(false, true) {
		return
	}
	defer r.asking.Store(false)
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	free, err := r.config.OthersFree(ctx)
	if err != nil {
		r.config.Logger.DebugContext(ctx, "whether another runner has a free slot is not known", "error", err)
	}
	if !free {
		return
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if r.yields || len(r.slots) < cap(r.slots) {
		return
	}
	r.yields = true
	r.pauseChange()
	r.config.Logger.InfoContext(ctx, "every slot is taken and another runner has a free one: work is left to it", "slots", cap(r.slots))
}

// Paused reports whether the runner takes no new attempts, and gives a channel that is closed when that changes.
func (r *Runner) Paused() (paused bool, changed <-chan struct{}) {
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	return r.cordoned.Load() || r.yields, r.pauseChanged
}

// refuses says why no new attempt is taken; nil when it is.
func (r *Runner) refuses() error {
	if r.cordoned.Load() {
		return ErrCordoned
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if r.yields {
		return ErrFull
	}
	return nil
}

// pauseChange tells who waits for it. The caller holds pauseMu.
func (r *Runner) pauseChange() {
	close(r.pauseChanged)
	r.pauseChanged = make(chan struct{})
}
