package fleet_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/fleet"
)

const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p" // The example of age's README.

func event(t *testing.T, subject string, data proto.Message) events.Event {
	t.Helper()
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/" + subject}.Event(subject, 0, 1, eventstest.Time, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestARunnerIsWhatItsNewestHeartbeatSaysUntilNothingComes(t *testing.T) {
	t.Parallel()
	f, at := fleet.New(), eventstest.Time
	beat := func(change func(*executionv1.RunnerHeartbeat)) {
		b := &executionv1.RunnerHeartbeat{Runner: "r1", Host: "h1", Slots: 8, Version: "1", StartedAt: timestamppb.New(at), AgeRecipient: recipient}
		change(b)
		f.Take(event(t, "r1", b), at)
	}
	wants := func(after time.Duration, state string) {
		t.Helper()
		list := f.List(at.Add(after))
		if len(list) != 1 || list[0].State != state || list[0].Slots != 8 || list[0].Host != "h1" || !list[0].StartedAt.Equal(at) {
			t.Errorf("after %s: %+v, want %s", after, list, state)
		}
	}
	beat(func(b *executionv1.RunnerHeartbeat) {
		b.Running = []*executionv1.RunningAttempt{{Execution: eventstest.ExecutionID, Attempt: 2, LastSequence: 3}}
	})
	wants(time.Second, api.RunnerReady)
	if r := f.List(at)[0]; len(r.Running) != 1 || r.Running[0] != (api.RunningAttempt{ExecutionID: eventstest.ExecutionID, Attempt: 2}) || r.AgeRecipient != recipient {
		t.Errorf("%+v", r)
	}
	wants(fleet.SilentAfter+1, api.RunnerSilent)
	beat(func(b *executionv1.RunnerHeartbeat) { b.Cordoned = true })
	wants(0, api.RunnerCordoned)
	beat(func(b *executionv1.RunnerHeartbeat) { b.Cordoned, b.Stopping = true, true })
	wants(0, api.RunnerStopping)
	wants(fleet.SilentAfter+1, api.RunnerStopped)
	if list := f.List(at.Add(fleet.ForgottenAfter + 1)); len(list) != 0 {
		t.Errorf("not forgotten: %+v", list)
	}
}

func TestTheFleetIsBoundedAndBelievesNoStranger(t *testing.T) {
	t.Parallel()
	f, at := fleet.New(), eventstest.Time
	f.Take(event(t, "other", &executionv1.RunnerHeartbeat{Runner: "r1"}), at)
	f.Take(event(t, eventstest.ExecutionID, &executionv1.CancelRequested{}), at)
	huge := &executionv1.RunnerHeartbeat{Runner: "huge"}
	for range 30_000 {
		huge.Running = append(huge.Running, &executionv1.RunningAttempt{Execution: eventstest.ExecutionID})
	}
	f.Take(event(t, "huge", huge), at)
	if list := f.List(at); len(list) != 0 {
		t.Fatalf("%d runners of events that are no heartbeats of their runner", len(list))
	}
	f.Take(event(t, "odd", &executionv1.RunnerHeartbeat{Runner: "odd", AgeRecipient: "age1nonsense"}), at)
	if list := f.List(at); len(list) != 1 || list[0].AgeRecipient != "" {
		t.Fatalf("%+v", list)
	}
	for i := range fleet.Limit + 10 {
		id := fmt.Sprintf("r%d", i)
		f.Take(event(t, id, &executionv1.RunnerHeartbeat{Runner: id}), at.Add(time.Duration(i+1)*time.Millisecond))
	}
	list := f.List(at.Add(time.Second))
	if len(list) != fleet.Limit {
		t.Fatalf("%d runners, the limit is %d", len(list), fleet.Limit)
	}
	for _, r := range list {
		if r.Runner == "odd" || r.Runner == "r9" {
			t.Errorf("%s was silent for longer than others that went", r.Runner)
		}
	}
}
