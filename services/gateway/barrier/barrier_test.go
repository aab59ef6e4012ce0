package barrier_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"verbatim.dev/services/gateway/barrier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// log is an Offsets whose answers a test sets.
type log struct {
	mu              sync.Mutex
	ends, committed map[int]int64
	err             error
	delay           time.Duration
	asked           int
}

func (l *log) set(change func(*log)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// answer takes its snapshot first and is slow afterwards, as an answer on its way is.
func (l *log) answer(ctx context.Context, which func() map[int]int64) (map[int]int64, error) {
	l.mu.Lock()
	l.asked++
	out, err, delay := maps.Clone(which()), l.err, l.delay
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(delay):
		return out, err
	}
}

func (l *log) EndOffsets(ctx context.Context, _ string) (map[int]int64, error) {
	return l.answer(ctx, func() map[int]int64 { return l.ends })
}

func (l *log) CommittedOffsets(ctx context.Context, _, _ string) (map[int]int64, error) {
	return l.answer(ctx, func() map[int]int64 { return l.committed })
}

func TestReachedMeansNoWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 5, 1: 9}, committed: map[int]int64{0: 5, 1: 3}}
		b := barrier.New(l, "g", "t")
		defer b.Stop()
		start := time.Now()
		if !b.Wait(t.Context(), 0, time.Second) || time.Since(start) != 0 {
			t.Errorf("a reached partition took %s", time.Since(start))
		}
		if b.Wait(t.Context(), 1, time.Second) {
			t.Error("partition 1 is 6 behind and was called reached")
		}
		if b.Wait(t.Context(), barrier.AllPartitions, time.Second) {
			t.Error("all partitions were called reached with one behind")
		}
	})
}

func TestWaitsForTheCommitAndNotLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 5}}
		b := barrier.New(l, "g", "t")
		defer b.Stop()
		time.AfterFunc(300*time.Millisecond, func() { l.set(func(l *log) { l.committed = map[int]int64{0: 5} }) })
		// What is written after the call began is not waited for.
		time.AfterFunc(100*time.Millisecond, func() { l.set(func(l *log) { l.ends = map[int]int64{0: 100} }) })
		start := time.Now()
		if !b.Wait(t.Context(), 0, 2*time.Second) {
			t.Error("the commit was not seen")
		}
		if took := time.Since(start); took < 300*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

func TestTheBudgetHoldsAlsoWhenTheBrokerHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 5}, committed: map[int]int64{0: 5}, delay: time.Hour}
		b := barrier.New(l, "g", "t")
		start := time.Now()
		if b.Wait(t.Context(), 0, time.Second) || time.Since(start) != time.Second {
			t.Errorf("a broker that does not answer took %s", time.Since(start))
		}
		b.Stop()
		if b.Wait(t.Context(), 0, time.Second) {
			t.Error("a stopped barrier says reached")
		}
	})
}

func TestABrokerThatComesBackIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 1}, committed: map[int]int64{0: 1}, err: errors.New("away")}
		b := barrier.New(l, "g", "t")
		defer b.Stop()
		time.AfterFunc(time.Second, func() { l.set(func(l *log) { l.err = nil }) })
		if !b.Wait(t.Context(), 0, 3*time.Second) {
			t.Error("the broker's return was not noticed")
		}
	})
}

// An answer that was on its way when the caller came may be older than the caller's own write.
func TestAnAnswerOnItsWayIsNotTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 1}, committed: map[int]int64{0: 1}, delay: 100 * time.Millisecond}
		b := barrier.New(l, "g", "t")
		defer b.Stop()
		go b.Wait(t.Context(), 0, time.Second)
		time.Sleep(50 * time.Millisecond) // Fake time: the first question is on its way.
		l.set(func(l *log) { l.ends = map[int]int64{0: 2} })
		if b.Wait(t.Context(), 0, 600*time.Millisecond) {
			t.Error("a write before the call was not waited for")
		}
	})
}

func TestManyCallersShareTheQuestions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &log{ends: map[int]int64{0: 5}, delay: 10 * time.Millisecond}
		b := barrier.New(l, "g", "t")
		var all sync.WaitGroup
		for range 500 {
			all.Go(func() {
				if b.Wait(t.Context(), 0, time.Second) {
					t.Error("called reached")
				}
			})
		}
		all.Wait()
		b.Stop()
		if l.asked > 100 {
			t.Errorf("500 callers asked %d times in a second, each question takes 10 ms", l.asked)
		}
	})
}

// Whoever asks at the moment at which the last question is answered gets an answer of his own, and nobody's is given twice.
func TestManyAskWhileTheLastIsAnswered(t *testing.T) {
	t.Parallel()
	l := &log{ends: map[int]int64{0: 5}, committed: map[int]int64{0: 5}}
	b := barrier.New(l, "g", "t")
	defer b.Stop()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 3000 {
				if !b.Wait(t.Context(), 0, time.Minute) {
					t.Error("what is stored was called late")
					return
				}
			}
		})
	}
	all.Wait()
}
