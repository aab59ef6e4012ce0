package execution

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// watched are facts of the watchdog about an attempt.
func watched(t testing.TB, attempt uint32, data ...proto.Message) (out []events.Event) {
	for i, d := range data {
		e, err := events.Producer{Name: "watchdog", Source: "/verbatim/watchdog"}.Event(testID, attempt, uint64(i+1), testTime.Add(time.Hour), d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func lostAfter(sequence uint64) proto.Message {
	return &executionv1.RunnerLost{Runner: "r1", SilentSince: timestamppb.New(testTime), LastSequence: sequence}
}

func TestALostRunner(t *testing.T) {
	t.Parallel()
	back := &executionv1.RunnerReturned{Runner: "r1"}
	cases := []struct {
		name  string
		facts []proto.Message // of the runner, numbered from 1
		watch []proto.Message
		want  string
	}{
		{"said nothing since", []proto.Message{started, out(0, "x")}, []proto.Message{lostAfter(2)}, StatusLost},
		{"had said nothing", nil, []proto.Message{lostAfter(0)}, StatusLost},
		{"says more", []proto.Message{started, out(0, "x"), out(1, "y")}, []proto.Message{lostAfter(2)}, StatusRunning},
		{"says more, and is lost again", []proto.Message{started, out(0, "x"), out(1, "y")}, []proto.Message{lostAfter(2), lostAfter(3)}, StatusLost},
		{"is seen again", []proto.Message{started}, []proto.Message{lostAfter(1), back}, StatusRunning},
		{"is seen again, and is lost again", []proto.Message{started}, []proto.Message{lostAfter(1), back, lostAfter(1)}, StatusLost},
		{"tells of the end", []proto.Message{started, exit(0)}, []proto.Message{lostAfter(1)}, StatusSucceeded},
		{"was lost after the end", []proto.Message{started, exit(0)}, []proto.Message{lostAfter(2)}, StatusSucceeded},
		{"was told to be lost by somebody who does not count", []proto.Message{started, out(0, "x")}, []proto.Message{lostAfter(0)}, StatusLost},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			row := Fold(testID, append(watched(t, 1, c.watch...), tell(t).in(1, c.facts...).all...))
			if row.Status != c.want {
				t.Errorf("the status is %q, want %q", row.Status, c.want)
			}
			if row.StdoutBytes == nil && len(c.facts) > 1 && c.facts[1].ProtoReflect().Descriptor().Name() == "OutputChunk" {
				t.Error("the output that came before is not in the row")
			}
		})
	}
}

// Whatever a runner says past what was known when it was lost makes the row what it is without that loss, in any order.
func TestARunnerThatSaysMoreWasNeverLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		all := tell(t).in(1, prepared, started, out(0, "a"), errs(0, "b"), out(1, "c")).all
		if rapid.Bool().Draw(rt, "ends") {
			all = tell(t).in(1, prepared, started, out(0, "a"), errs(0, "b"), out(1, "c"), exit(1), seal(2, "ac", 1, "b")).all
		}
		known := uint64(rapid.IntRange(1, len(all)-1).Draw(rt, "known"))
		with := append(watched(t, 1, lostAfter(known)), all...)
		with = rapid.Permutation(with).Draw(rt, "order")
		got, want := Fold(testID, with), Fold(testID, all)
		want.Version++
		want.Facts["RunnerLost"]++
		if rowJSON(rt, got) != rowJSON(rt, want) {
			rt.Fatalf("lost after %d of %d facts:\n%s\nwithout:\n%s", known, len(all), rowJSON(rt, got), rowJSON(rt, want))
		}
	})
}

func TestRetryPolicy(t *testing.T) {
	t.Parallel()
	ask := func(retries uint32, on ...executionv1.RetryOn) proto.Message {
		return &executionv1.ExecutionRequested{
			What:  &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"x"}}},
			Retry: &executionv1.RetryPolicy{Retries: retries, RetryOn: on},
		}
	}
	const (
		onLost    = executionv1.RetryOn_RETRY_ON_LOST
		onFailed  = executionv1.RetryOn_RETRY_ON_FAILED
		onTimeout = executionv1.RetryOn_RETRY_ON_TIMEOUT
	)
	at := timestamppb.New(testTime.Add(time.Minute))
	cases := []struct {
		name   string
		policy proto.Message
		facts  []proto.Message
		watch  []proto.Message
		cancel bool
		want   string
		next   executionv1.RetryOn
	}{
		{"no policy", ask(0), []proto.Message{started, exit(1), sealed0}, nil, false, StatusFailed, 0},
		{"a policy that makes no sense", ask(101, onFailed), []proto.Message{started, exit(1), sealed0}, nil, false, StatusFailed, 0},
		{"failed", ask(1, onFailed), []proto.Message{started, exit(1), sealed0}, nil, false, StatusRetrying, onFailed},
		{"killed", ask(1, onFailed), []proto.Message{started, killed("KILL"), sealed0}, nil, false, StatusRetrying, onFailed},
		{"failed and not asked for", ask(1, onLost, onTimeout), []proto.Message{started, exit(1), sealed0}, nil, false, StatusFailed, 0},
		{"succeeded", ask(1, onLost, onFailed, onTimeout), []proto.Message{started, exit(0), sealed0}, nil, false, StatusSucceeded, 0},
		{"timeout", ask(1, onTimeout), []proto.Message{started, terminated(timeout, "TERM"), exit(0), sealed0}, nil, false, StatusRetrying, onTimeout},
		{"timeout is no failure", ask(1, onFailed), []proto.Message{started, terminated(timeout, "TERM"), exit(1), sealed0}, nil, false, StatusTimeout, 0},
		{"cancelled", ask(1, onLost, onFailed, onTimeout), []proto.Message{started, terminated(cancel, "TERM"), exit(1), sealed0}, nil, false, StatusCancelled, 0},
		{"cancelled between attempts", ask(1, onFailed), []proto.Message{started, exit(1), sealed0}, nil, true, StatusFailed, 0},
		{"not found", ask(1, onLost, onFailed, onTimeout), []proto.Message{noStart(notFound, "no"), sealed0}, nil, false, StatusFailed, 0},
		{"lost", ask(1, onLost), []proto.Message{started}, []proto.Message{lostAfter(1)}, false, StatusRetrying, onLost},
		{"lost and not asked for", ask(1, onFailed, onTimeout), []proto.Message{started}, []proto.Message{lostAfter(1)}, false, StatusLost, 0},
		{"lost and back", ask(1, onLost), []proto.Message{started, out(0, "x")}, []proto.Message{lostAfter(1)}, false, StatusRunning, 0},
		{"nobody saw the end", ask(1, onLost), []proto.Message{started, noWait, sealed0}, nil, false, StatusRetrying, onLost},
		{"nobody saw the end, not asked for", ask(1, onFailed), []proto.Message{started, noWait, sealed0}, nil, false, StatusFailed, 0},
		{"runner stopped", ask(1, onLost), []proto.Message{started, terminated(shutdown, "TERM"), exit(1), sealed0}, nil, false, StatusRetrying, onLost},
		{"scheduled", ask(1, onFailed), []proto.Message{started, exit(1), sealed0}, []proto.Message{&executionv1.RetryScheduled{NextAttempt: 2, NotBefore: at}}, false, StatusRetrying, onFailed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			story := tell(t).in(0, c.policy)
			if c.cancel {
				story.in(0, &executionv1.CancelRequested{})
			}
			s := New(testID)
			for _, e := range append(story.in(1, c.facts...).all, watched(t, 1, c.watch...)...) {
				s.Apply(e, time.Time{})
			}
			row, standing := s.Row(), s.Standing()
			if row.Status != c.want || standing.Next != c.next {
				t.Errorf("the status is %q and %v follows, want %q and %v", row.Status, standing.Next, c.want, c.next)
			}
			if (row.RetryAt != nil) != (c.name == "scheduled") {
				t.Errorf("the next attempt is at %v", row.RetryAt)
			}
			// The second attempt was the last one.
			for _, e := range tell(t).in(2, c.facts...).all {
				s.Apply(e, time.Time{})
			}
			if c.facts[0] == proto.Message(started) && c.next != onLost && s.Standing().Next != 0 {
				t.Error("a third attempt follows")
			}
		})
	}
}
