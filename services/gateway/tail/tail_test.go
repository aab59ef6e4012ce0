package tail_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/tail"
)

// begin follows from the first fact. Every sleep below is in the own time of a bubble (testing/synctest), which passes at once.
var begin = int64(-1)

func TestFollowsWhatHappensUntilTheSeal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s, other := newMemory(), newStory(t), newStory(t)
		h := m.hub(t)
		m.append(other.chunks(3)...)
		go func() {
			for range 50 {
				m.append(s.chunk(), other.chunk())
				time.Sleep(time.Millisecond) // In the bubble's own time.
			}
			m.append(s.seal(), s.chunk())
		}()
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, 51)
	})
}

func TestAnEndedExecutionNeedsNoLog(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.append(s.chunks(5)...)
	m.append(s.seal(), s.record(s.sealedLate()))
	m.archive(100)
	m.fail = errors.New("no broker")
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 7)
}

// Above the committed offset the archive may have holes; there only the log counts.
func TestTheSeamIsTheCommittedOffset(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.append(s.chunks(10)...)
	m.archive(4)
	m.archived[4], m.archived[7], m.archived[8] = true, true, true
	m.append(s.seal())
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 11)
}

func TestWithoutASeamTheLogIsReadAfterTheArchive(t *testing.T) {
	t.Parallel()
	m, s, other := newMemory(), newStory(t), newStory(t)
	old := other.chunk()
	old.Time = time.Now().Add(-time.Hour)
	m.append(old)
	m.append(s.chunks(5)...)
	m.append(s.seal())
	for archived := range int64(6) {
		m.set(func() { m.archived[archived] = true })
		got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, 6)
	}
}

func TestResumesAfterAnOffset(t *testing.T) {
	t.Parallel()
	for stored := range int64(12) {
		m, s := newMemory(), newStory(t)
		m.append(s.chunks(9)...)
		m.append(s.seal())
		m.archive(stored)
		h := m.hub(t)
		for after := int64(-1); after < 9; after++ {
			got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: after}))
			want(t, got, err, uint64(after+2), 10)
		}
		// The seal itself was received, only the end was not.
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: 9, Sealed: true}))
		want(t, got, err, 1, 0)
	}
}

func TestARetryGoesOn(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.append(s.chunk(), s.seal())
	s.attempt = 2
	m.append(s.chunk())
	m.archive(3)
	m.append(s.chunk(), s.seal())
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 5)
}

// A tail goes on while the policy asks for another attempt, also one that begins after the policy, and ends when a cancel ends that.
func TestAPolicyIsFollowed(t *testing.T) {
	t.Parallel()
	asked := &executionv1.ExecutionRequested{Retry: &executionv1.RetryPolicy{Retries: 1, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_FAILED}}}
	failed := &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 1}}
	for _, cancelled := range []bool{false, true} {
		m, s := newMemory(), newStory(t)
		s.attempt = 0
		m.append(s.record(asked))
		s.attempt = 1
		m.append(s.chunk(), s.record(failed), s.seal())
		var last uint64
		known := execution.New(s.id)
		for _, r := range m.records {
			e, err := codec.Decode(r.Headers, r.Value)
			if err != nil {
				t.Fatal(err)
			}
			known.Apply(e, r.Time)
		}
		if s.attempt = 2; cancelled {
			s.attempt = 0
			m.append(s.record(&executionv1.CancelRequested{}))
			last = 5
		} else {
			m.append(s.chunk(), s.record(failed), s.seal())
			last = 7
		}
		got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, last)
		got, err = sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: 3, Known: known}))
		want(t, got, err, 5, last)
	}
}

// A runner that was lost ends the tail; one that came back meanwhile does not.
func TestALostRunnerEndsATail(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.append(s.chunk(), s.chunk())
	gone, err := events.Producer{Name: "watchdog", Source: "/verbatim/watchdog"}.Event(s.id, 1, 3, time.Now(), &executionv1.RunnerLost{LastSequence: 2})
	if err != nil {
		t.Fatal(err)
	}
	headers, value, err := codec.Encode(gone)
	if err != nil {
		t.Fatal(err)
	}
	m.append(tail.Record{Key: []byte(s.id), Headers: headers, Value: value, Time: time.Now()})
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 3)
	s.sequence = 3
	m.append(s.chunk(), s.seal())
	got, err = sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 5)
}

func TestAFullQueueIsCaughtUpWith(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s, other := newMemory(), newStory(t), newStory(t)
		h := m.hub(t, func(c *tail.Config) { c.QueueFacts = 4 })
		m.archive(0)
		go func() {
			for range 1000 {
				m.append(s.chunk(), other.chunk())
				time.Sleep(time.Millisecond) // In the bubble's own time.
			}
			m.append(s.seal())
		}()
		slow := func() { time.Sleep(3 * time.Millisecond) } // In the bubble's own time.
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}), slow)
		want(t, got, err, 1, 1001)
		if m.opened < 3 {
			t.Errorf("%d readers were opened: no queue was ever full", m.opened)
		}
	})
}

func TestAQueueIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newStory(t)
		h := m.hub(t, func(c *tail.Config) { c.QueueBytes = 1 })
		m.archive(0)
		go func() {
			for range 100 {
				m.append(s.chunks(3)...)
				time.Sleep(time.Millisecond) // In the bubble's own time.
			}
			m.append(s.seal())
		}()
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}), func() { time.Sleep(time.Millisecond) }) // In the bubble's own time.
		want(t, got, err, 1, 301)
	})
}

func TestOneReaderPerPartitionHoweverManyFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.archive(0)
		h := m.hub(t)
		var all sync.WaitGroup
		stories := make([]*story, 50)
		for i := range stories {
			s := newStory(t)
			stories[i] = s
			all.Go(func() {
				got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
				want(t, got, err, 1, 2)
			})
		}
		synctest.Wait()
		if m.open != 1 || m.opened != 1 {
			t.Errorf("%d readers are open, %d were opened", m.open, m.opened)
		}
		for _, s := range stories {
			m.append(s.chunk(), s.seal())
		}
		all.Wait()
		synctest.Wait()
		if m.open != 0 {
			t.Error("the reader outlives the last who follows")
		}
	})
}

func TestStopEndsEveryTail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newStory(t)
		m.append(s.chunk())
		h := m.hub(t)
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
				if !errors.Is(err, tail.ErrStopped) || len(got) != 1 {
					t.Errorf("got %v and error %v", got, err)
				}
			})
		}
		synctest.Wait()
		h.Stop()
		all.Wait()
		if _, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin})); !errors.Is(err, tail.ErrStopped) {
			t.Errorf("a tail after Stop ends with %v", err)
		}
	})
}

func TestTheCallersContextEndsTheTail(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]error{"live": nil, "broker away": errors.New("away")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m, s := newMemory(), newStory(t)
				m.fail = fail
				h := m.hub(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := sequences(t, s.id, h.Follow(ctx, tail.Request{ID: s.id, After: begin})); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("ends with %v", err)
				}
			})
		})
	}
}

func TestABrokerThatBreaksCostsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newStory(t)
		h := m.hub(t)
		m.append(s.chunks(5)...)
		m.fail = errors.New("away")
		go func() {
			for i := range 20 {
				time.Sleep(time.Second) // In the bubble's own time.
				m.set(func() {
					m.fail = nil
					m.breakAll = i%2 == 0
				})
				m.append(s.chunks(5)...)
			}
			m.append(s.seal())
		}()
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, 106)
	})
}

func TestAResendIsToldOnce(t *testing.T) {
	t.Parallel()
	for stored := range int64(9) {
		m, s := newMemory(), newStory(t)
		a, b, c := s.chunk(), s.chunk(), s.chunk()
		m.append(a, b, b, a, c, a, b, s.seal())
		m.archive(stored)
		got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, 4)
	}
}

// Hundreds that do not read hold no reader and keep nobody else from catching up.
func TestSlowOnesHoldNoReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newStory(t)
		m.archive(0)
		m.append(s.chunks(50)...)
		h := m.hub(t)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				for range h.Follow(ctx, tail.Request{ID: s.id, After: begin}) {
					<-ctx.Done()
				}
			})
		}
		synctest.Wait()
		if m.open > 1 {
			t.Errorf("%d readers are held", m.open)
		}
		m.append(s.seal())
		got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
		want(t, got, err, 1, 51)
		cancel()
		all.Wait()
	})
}

func TestAnOffsetThatIsGoneIsSaid(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.start = 100
	m.append(s.chunks(3)...)
	m.stored, m.known = 50, true // The recorder is behind what the log still has.
	if _, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin})); !errors.Is(err, tail.ErrOffsetGone) {
		t.Errorf("ends with %v", err)
	}
}

func TestAnArchiveThatBreaksGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	m.append(s.chunks(10)...)
	m.append(s.seal())
	m.archive(11)
	m.archiveFail = 3
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 11)

	m.archiveFail = 0
	if _, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin})); err == nil {
		t.Error("an archive that gives nothing is no error")
	}
}

func TestRecordsThatAreNoEventsAreSkipped(t *testing.T) {
	t.Parallel()
	m, s := newMemory(), newStory(t)
	bad := s.chunk()
	s.sequence--
	bad.Value = []byte("\xff")
	bare := tail.Record{Key: []byte(s.id), Value: []byte("hello")}
	lying := newStory(t).chunk()
	lying.Key = []byte(s.id)
	m.append(bad, bare, lying, s.chunk(), bad, s.seal())
	got, err := sequences(t, s.id, m.hub(t).Follow(t.Context(), tail.Request{ID: s.id, After: begin}))
	want(t, got, err, 1, 2)
}

// Whatever the archive, the queues and the broker do: every fact, once, in order.
func TestEveryFactOnceWhateverHappens(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			m := newMemory()
			h := m.hub(t, func(c *tail.Config) { c.QueueFacts = 1 + r.IntN(20) })
			stories := []*story{newStory(t), newStory(t), newStory(t)}
			var all sync.WaitGroup
			follow := func(s *story, pace time.Duration) {
				all.Go(func() {
					got, err := sequences(t, s.id, h.Follow(t.Context(), tail.Request{ID: s.id, After: begin}), func() { time.Sleep(pace) }) // In the bubble's own time.
					want(t, got, err, 1, 301)
				})
			}
			for range 300 {
				for _, s := range stories {
					m.append(s.chunk())
				}
				if r.IntN(10) == 0 {
					m.archive(r.Int64N(int64(len(m.records))-m.stored+1) + m.stored)
				}
				if r.IntN(30) == 0 {
					m.set(func() { m.breakAll = !m.breakAll })
				}
				if r.IntN(20) == 0 {
					follow(stories[r.IntN(3)], time.Duration(r.IntN(20))*time.Millisecond)
				}
				time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond) // In the bubble's own time.
			}
			m.set(func() { m.breakAll = false })
			for _, s := range stories {
				m.append(s.seal())
			}
			all.Wait()
		})
	}
}
