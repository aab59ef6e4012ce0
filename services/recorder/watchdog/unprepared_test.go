package watchdog

import (
	"errors"
	"testing"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// loses has a runner fall silent, and wants that to be seen while the requests are what they are.
func (s *theatre) loses(w *Watchdog) {
	s.Helper()
	id := newID(s.T)
	s.prepare(id, 1)
	s.runner(id, 1, started)
	s.beat(id)
	s.passes(w)
	s.later(w, silence)
	s.wantSaid(w, id, "RunnerLost")
}

// Preparers were away for longer than requests are kept: what they had committed is gone.
func TestRequestsWereRemoved(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	taken, removed, left := newID(t), newID(t), newID(t)
	for kafka.PartitionFor([]byte(removed), 6) != kafka.PartitionFor([]byte(taken), 6) {
		removed = newID(t)
	}
	for kafka.PartitionFor([]byte(left), 6) != kafka.PartitionFor([]byte(taken), 6) {
		left = newID(t)
	}
	for _, id := range []string{taken, removed, left} {
		s.say(events.TopicRequests, "gateway", "/verbatim/gateway", id, 0, command(nil))
	}
	s.take(events.TopicRequests, kafka.SubscriberOptions{Group: preparers, MaxInFlight: 1}, taken)
	s.forgetRequests(map[int]int64{kafka.PartitionFor([]byte(taken), 6): 2})
	s.loses(w)
	for n := 0; n < 100 && len(s.said(left)) == 0; n++ { // By the broker's clock, which may be ahead of the test's.
		s.later(w, time.Second)
	}
	s.wantSaid(w, left, "PreparationFailed")
}

// A request that cannot be published again says that it failed without itself, and disturbs nobody.
func TestALargeRequestIsNotPrepared(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id, next := newID(t), newID(t)
	for kafka.PartitionFor([]byte(next), 6) != kafka.PartitionFor([]byte(id), 6) {
		next = newID(t)
	}
	s.requestLarge(id)
	s.say(events.TopicRequests, "gateway", "/verbatim/gateway", next, 0, command(nil))
	s.later(w, 12*time.Second)
	s.loses(w)
	for n := 0; n < 100 && len(s.said(next)) == 0; n++ {
		s.later(w, time.Second)
	}
	if f := s.wantSaid(w, id, "PreparationFailed")[0].(*executionv1.PreparationFailed); f.GetReason() != executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_EXPIRED {
		t.Errorf("%v", f)
	}
	s.wantSaid(w, next, "PreparationFailed")
}

// A partition that cannot be read is left alone for a while, and nothing else is.
func TestRequestsCannotBeRead(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := newID(t)
	s.say(events.TopicRequests, "gateway", "/verbatim/gateway", id, 0, command(nil))
	w.setAside(t.Context(), kafka.PartitionFor([]byte(id), 6), errors.New("cannot be read"))
	s.later(w, 20*time.Second)
	s.wantSaid(w, id)
	s.loses(w)
	s.later(w, time.Minute)
	s.wantSaid(w, id, "PreparationFailed")
}

// The next attempt of a request that fits only just is not to be had. It disturbs nobody.
func TestALargeRequestIsNotRetried(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := newID(t)
	c := command(&executionv1.RetryPolicy{Retries: 1, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_FAILED}})
	c.Stdin = make([]byte, kafka.DefaultMaxMessageBytes-540)
	s.say(events.TopicExecutions, "gateway", "/verbatim/gateway", id, 0, c)
	s.prepare(id, 1)
	s.runner(id, 1, started, failed, sealed)
	s.later(w, 10*time.Second)
	s.wantSaid(w, id, "RetryScheduled")
	if got := s.commands(); len(got) != 0 {
		t.Fatal("the request is small enough to be asked for again, so this test shows nothing")
	}
	s.loses(w)
}
