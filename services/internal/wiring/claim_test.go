package wiring_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/journal"
)

// A runner was killed while it claimed, and asks whether it has the attempt. Two runners that both have it would start it
// twice; none would start it never.
func TestWhoseClaimItIs(t *testing.T) {
	r := newRig(t)
	execution, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"1", "2", "3", "4"} {
		m := message.NewMessage(id, nil)
		m.Metadata["ce_partitionkey"] = execution
		if err := r.pub.Publish(events.TopicWork, m); err != nil {
			t.Fatal(err)
		}
	}
	launch := func(m *message.Message) journal.Launch {
		at, _ := kafka.PositionFromContext(m.Context())
		return journal.Launch{Execution: execution, Attempt: 1, At: time.Now(), Placed: true, Partition: at.Partition, Offset: at.Offset}
	}
	ask := func(id string, l journal.Launch) bool {
		t.Helper()
		whose, err := wiring.Committed(r.base, id)(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return whose == runner.Mine
	}
	first := r.work("r1")
	own := claim(t, first.messages)
	l := launch(receiveWork(t, first.messages))
	if ask("r1", l) {
		t.Error("nobody has claimed it")
	}
	first.close()
	second := r.work("r2")
	check := func(owner string, l journal.Launch) {
		t.Helper()
		for _, id := range []string{"r1", "r2", "r3"} {
			if ask(id, l) != (id == owner) {
				t.Errorf("offset %d is %s's; %s has another answer", l.Offset, owner, id)
			}
		}
	}
	claim(t, second.messages)
	check("r2", l)
	// The commit is of the next one now, and nobody has said anything about the first.
	next := launch(claim(t, second.messages))
	check("r2", l)
	check("r2", next)
	second.close()
	third := r.work("r3")
	last := launch(claim(t, third.messages))
	check("r1", launch(own))
	check("r2", l)
	check("r2", next)
	check("r3", last)
}

// claim claims the next message.
func claim(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	m := receiveWork(t, messages)
	if err := kafka.CommitSync(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	m.Ack()
	return m
}

type worker struct {
	messages <-chan *message.Message
	close    func()
}

func (r *rig) work(id string) worker {
	r.t.Helper()
	s, err := kafka.NewSubscriber(r.base.Kafka, kafka.SubscriberOptions{Group: "runner", CommitMetadata: wiring.Signature(id), DrainTimeout: time.Millisecond})
	if err != nil {
		r.t.Fatal(err)
	}
	closing := func() {
		if err := s.Close(); err != nil {
			r.t.Error(err)
		}
	}
	r.t.Cleanup(closing)
	messages, err := s.Subscribe(context.Background(), events.TopicWork)
	if err != nil {
		r.t.Fatal(err)
	}
	return worker{messages, closing}
}

func receiveWork(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m := <-messages:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no work")
		return nil
	}
}
