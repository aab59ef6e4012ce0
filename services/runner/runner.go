package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"
	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/runner/outbox"
	"verbatim.dev/services/runner/supervisor"
)

// Publisher writes facts to the log; outbox.Publisher has the contract.
type Publisher = outbox.Publisher

// Claim makes an attempt this runner's own: it commits the offset of the message that brought it, and returns
// when the broker has it. An error means that it may be somebody else's, and it is not started.
type Claim func(ctx context.Context, m *message.Message) error

// ErrStopping says that the runner takes no more attempts. The message belongs back in the queue.
var ErrStopping = errors.New("runner is stopping")

// ErrWaiting says that another delivery of the same attempt waits for its slot or its claim right now.
var ErrWaiting = errors.New("attempt is already waiting here")

// How much is remembered, and for how long. A cancel can overtake the Prepared by what lies in the queue; a
// second Prepared comes from a resend or a rebalance.
const (
	cancelAge, cancelLimit   = 24 * time.Hour, 1 << 14
	attemptAge, attemptLimit = 7 * 24 * time.Hour, 100_000
)

// Runner is a runner. Its methods are safe for concurrent use.
type Runner struct {
	config   Config
	work     string // The directory of working directories.
	folders  string // The directory of the attempts' folders.
	lock     *os.File
	reserve  *reserve
	ended    ended
	left     []*attempt // By Adopt, for Recover; nil before Adopt.
	client   *supervisor.Client
	host     *supervisor.Host // When it is in this process.
	producer events.Producer
	publish  Publisher
	claim    Claim
	metrics  *metrics
	slots    chan struct{}
	ears     chan struct{}       // As slots, for attempts that are only listened to.
	key      *age.X25519Identity // For secrets.
	fetches  chan struct{}       // One for each upload that is fetched.
	asking   atomic.Bool         // Others are asked for a free slot.

	// cordoned: somebody said that it takes no new attempts. yields: it is full, and others are not.
	cordoned     atomic.Bool
	yields       bool
	pauseMu      sync.Mutex    // Guards yields and the writing of cordoned.
	pauseChanged chan struct{} // Closed and replaced with each change.

	// stopped: no new ones. shutdown: end them. hurry: kill them. life ends: nothing is published any more.
	stopped, shutdown, hurry             chan struct{}
	closeStopped, closeShutdown, goHurry func()
	life                                 context.Context
	abort                                context.CancelCauseFunc

	mu       sync.Mutex
	attempts map[string]*attempt // By key; admitted and not over.
	known    *recent[struct{}]   // Keys of attempts that were claimed here.
	cancels  *recent[cancellation]
	stopping bool
	heart    *heart         // nil before Beat and after Stop.
	busy     sync.WaitGroup // One for each of attempts.

	busyHost  sync.WaitGroup
	closeOnce sync.Once
}

type cancellation struct{ requestedBy, reason string }

// New returns a runner that is ready to handle messages.
func New(c Config, p Publisher, claim Claim) (*Runner, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration of the runner: %w", err)
	}
	if p == nil || claim == nil {
		return nil, errors.New("runner needs a publisher and a claim")
	}
	c = c.withDefaults()
	r := &Runner{
		config: c, publish: p, claim: claim,
		producer: events.Producer{Name: "runner", Source: "/verbatim/runner/" + c.ID},
		slots:    make(chan struct{}, c.Slots),
		ears:     make(chan struct{}, c.Slots),
		fetches:  make(chan struct{}, fetchesAtOnce),
		attempts: make(map[string]*attempt),
		known:    newRecent[struct{}](attemptAge, attemptLimit),
		cancels:  newRecent[cancellation](cancelAge, cancelLimit),
	}
	r.stopped, r.closeStopped = signal()
	r.shutdown, r.closeShutdown = signal()
	r.hurry, r.goHurry = signal()
	r.life, r.abort = context.WithCancelCause(context.Background())
	if err := r.open(); err != nil {
		return nil, err
	}
	var err error
	r.pauseChanged = make(chan struct{})
	if err = r.loadCordon(); err == nil {
		r.key, err = openKey(c.DataDir)
	}
	if err == nil {
		r.metrics, err = newMetrics(c.Registry)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	r.metrics.slots.Set(float64(c.Slots))
	return r, nil
}

// signal is a channel and a function that closes it once.
func signal() (chan struct{}, func()) {
	c := make(chan struct{})
	return c, sync.OnceFunc(func() { close(c) })
}

// Handle takes a message of events.TopicWork: it waits for a free slot, claims the attempt and starts it in the background.
// nil means that the message is done with. An error that failure.IsPermanent knows means that it never can be; any
// other (ErrStopping, ErrCordoned, ErrFull, ErrWaiting, the claim's, the message's context's) that nothing was started.
func (r *Runner) Handle(m *message.Message) error {
	work, err := codec.FromMessage(m)
	if err != nil {
		return failure.Permanent(fmt.Errorf("decode work: %w", err))
	}
	spec, ok := work.Data.(*executionv1.Prepared)
	if !ok {
		return failure.Permanent(fmt.Errorf("%s is no work: topic %s takes Prepared", work.Type, events.TopicWork))
	}
	a, err := r.admit(work, spec)
	if err != nil {
		return err
	}
	if a == nil { // Known: all that is left is to move the queue on.
		return r.claimAgain(keyOf(work), m)
	}
	kept := false
	defer func() {
		if !kept { // Also when the claim panics: who called may live on.
			r.dismiss(a)
		}
	}()
	err = r.own(a, m)
	switch {
	case err == nil:
		kept = true
		go r.run(a)
	case errors.Is(err, errUnanswered):
		kept = true
		go r.settle(a)
	}
	return err
}

// admit enters an attempt. No attempt and no error means that it was claimed here before, or that its claim has no answer yet.
func (r *Runner) admit(work events.Event, spec *executionv1.Prepared) (*attempt, error) {
	a := newAttempt(r, work, spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return nil, ErrStopping
	}
	if err := r.refuses(); err != nil {
		return nil, err
	}
	if _, known := r.known.get(a.key, time.Now()); known {
		a.log.Info("attempt is known already, this delivery is ignored")
		return nil, nil
	}
	if waits, ok := r.attempts[a.key]; ok {
		if waits.unanswered {
			waits.claims++
			return nil, nil
		}
		return nil, ErrWaiting
	}
	if c, ok := r.cancels.get(work.Subject, time.Now()); ok {
		a.cancel(c)
	}
	r.attempts[a.key] = a
	r.busy.Add(1)
	return a, nil
}

func (r *Runner) run(a *attempt) {
	if !a.run(r.life) {
		r.dismiss(a)
		return
	}
	// From here on it is as if a former worker had left it.
	late, err := r.reopen(a.folder)
	if err != nil || late == nil {
		a.log.Error("what comes late is left to the next start", "folder", a.folder, "error", err)
		r.dismiss(a)
		return
	}
	late.claimed, late.hasEar = true, true
	r.mu.Lock()
	r.attempts[a.key] = late
	r.count(a, -1)
	r.count(late, 1)
	r.mu.Unlock()
	if a.hasSlot {
		r.freeSlot()
	}
	select {
	case <-a.cancelled: // In the moment between.
		late.cancel(a.why)
	default:
	}
	late.run(r.life)
	r.dismiss(late)
}

// count counts an attempt that is claimed.
func (r *Runner) count(a *attempt, n float64) {
	if a.past.isLate() {
		r.metrics.late.Add(n)
	} else {
		r.metrics.running.Add(n)
	}
}

// dismiss forgets an attempt and frees its slot.
func (r *Runner) dismiss(a *attempt) {
	r.mu.Lock()
	delete(r.attempts, a.key)
	if a.claimed {
		r.count(a, -1)
	}
	r.mu.Unlock()
	if a.hasSlot {
		r.freeSlot()
	}
	if a.hasEar {
		<-r.ears
	}
	r.busy.Done()
}

// Cancel ends the attempts of an execution that are here, and remembers to start none that come later. The
// first request stays; another one changes nothing.
func (r *Runner) Cancel(execution, requestedBy, reason string) {
	c := cancellation{requestedBy: oneLine(requestedBy), reason: oneLine(reason)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancels.add(execution, c, time.Now()) {
		r.config.Logger.Warn("a cancel was forgotten to remember a newer one", "remembered", cancelLimit)
	}
	for _, a := range r.attempts {
		if a.work.Subject == execution {
			a.cancel(c)
		}
	}
}

// Running lists the attempts that are claimed and not over, without those that are only listened to, by execution, each with the last number it gave out.
func (r *Runner) Running() []*executionv1.RunningAttempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*executionv1.RunningAttempt, 0, len(r.attempts))
	for _, a := range r.attempts {
		if a.claimed && !a.past.isLate() {
			list = append(list, &executionv1.RunningAttempt{Execution: a.work.Subject, Attempt: a.work.Attempt, LastSequence: a.facts.Last()})
		}
	}
	slices.SortFunc(list, func(a, b *executionv1.RunningAttempt) int {
		return strings.Compare(a.GetExecution(), b.GetExecution())
	})
	return list
}

// oneLine makes a text from outside fit for an event: valid UTF-8, one line, bounded.
func oneLine(s string) string {
	const limit = 1024
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.NewReplacer("\n", " ", "\r", " ").Replace(strings.ToValidUTF8(s, "\uFFFD"))
}
