package watchdog

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// forge says something in another's name, with any number.
func (s *theatre) forge(name, source, id string, sequence uint64, data proto.Message) {
	s.Helper()
	e, err := events.Producer{Name: name, Source: source}.Event(id, 1, sequence, time.Now(), data)
	s.must(err)
	m, err := codec.ToMessage(e)
	s.must(err)
	s.must(s.publisher.PublishContext(s.Context(), events.TopicExecutions, m))
}

// own are the ids of what the watchdog said.
func (s *theatre) own(id string) map[string]bool {
	ids := map[string]bool{}
	for _, f := range s.archive.of(id) {
		if f.Event.Source == producer.Source && f.Event.Sequence < 1000 {
			ids[f.Event.ID] = true
		}
	}
	return ids
}

// What somebody else said in the watchdog's name does not keep it from saying that a runner is lost, once.
func TestForgedNumbers(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id, other := newID(t), newID(t)
	for _, i := range []string{id, other} {
		s.prepare(i, 1)
		s.runner(i, 1, started)
	}
	s.forge("watchdog", producer.Source, id, math.MaxUint64, &executionv1.RunnerReturned{Runner: "r1"})
	s.forge("somebody", producer.Source, other, 7, &executionv1.RunnerReturned{Runner: "r1"})
	s.beat(id, other)
	s.passes(w)
	s.later(w, 3*silence)
	for _, i := range []string{id, other} {
		if ids := s.own(i); !ids[i+"/1/watchdog/1"] || ids[i+"/1/watchdog/2"] {
			t.Errorf("the watchdog said %v", ids)
		}
	}
}

// A policy that nobody checked, or an outsider's idea of when to go on, is no reason to say the same for ever.
func TestRetriesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true, func(c *Config) { c.PrepareWithin = time.Hour })
	onFailed := []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_FAILED}
	endless, elsewhen := newID(t), newID(t)
	s.request(endless, &executionv1.RetryPolicy{Retries: 3, RetryOn: onFailed, Backoff: durationpb.New(1 << 62), MaxBackoff: durationpb.New(math.MaxInt64)})
	s.request(elsewhen, &executionv1.RetryPolicy{Retries: 1, RetryOn: onFailed, Backoff: durationpb.New(4 * time.Second)})
	s.forge("ci", "/ci", elsewhen, math.MaxUint64, &executionv1.RetryScheduled{NextAttempt: 2, NotBefore: &timestamppb.Timestamp{Seconds: math.MaxInt64}})
	for _, attempt := range []uint32{1, 2} {
		s.prepare(endless, attempt)
		s.runner(endless, attempt, started, failed, sealed)
	}
	s.prepare(elsewhen, 1)
	s.runner(elsewhen, 1, started, failed, sealed)
	s.passes(w)
	s.later(w, 8*time.Second)
	s.wantSaid(w, endless)
	s.wantSaid(w, elsewhen, "RetryScheduled")
	if got := s.commands(); len(got) != 1 || got[0].Subject != elsewhen {
		t.Errorf("requested are %v", got)
	}
}

func TestPausesDoNotOverflow(t *testing.T) {
	t.Parallel()
	p := &executionv1.RetryPolicy{Backoff: durationpb.New(1 << 62), MaxBackoff: durationpb.New(math.MaxInt64)}
	if got := pause(p, "x", 2); got < 1<<62-1 {
		t.Errorf("after attempt 2: %s", got)
	}
}
