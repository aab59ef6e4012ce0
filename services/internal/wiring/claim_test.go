package wiring_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/wiring"
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
	m := message.NewMessage("1", nil)
	m.Metadata["ce_partitionkey"] = execution
	next := message.NewMessage("2", nil)
	next.Metadata["ce_partitionkey"] = execution
	if err := r.pub.Publish(events.TopicWork, m, next); err != nil {
		t.Fatal(err)
	}
	launch := func(m *message.Message) journal.Launch {
		at, _ := kafka.PositionFromContext(m.Context())
		return journal.Launch{Execution: execution, Attempt: 1, At: time.Now(), Placed: true, Partition: at.Partition, Offset: at.Offset}
	}
	ask := func(id string, l journal.Launch) bool {
		t.Helper()
		mine, err := wiring.Committed(r.base, id)(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return mine
	}
	first := r.work("r1")
	l := launch(receiveWork(t, first.messages))
	if ask("r1", l) {
		t.Error("nobody has claimed it")
	}
	first.close()
	second := r.work("r2")
	claimed := receiveWork(t, second.messages)
	if err := kafka.CommitSync(t.Context(), claimed); err != nil {
		t.Fatal(err)
	}
	if ask("r1", l) || !ask("r2", l) {
		t.Error("r2 claimed it")
	}
	claimed.Ack()
	// The signature is the next one's now, and nobody has said anything about the first.
	last := receiveWork(t, second.messages)
	if err := kafka.CommitSync(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if !ask("r2", launch(last)) || ask("r1", launch(last)) {
		t.Error("r2 claimed the next one")
	}
}

type worker struct {
	messages <-chan *message.Message
	close    func()
}

func (r *rig) work(id string) worker {
	r.t.Helper()
	s, err := kafka.NewSubscriber(r.base.Kafka, kafka.SubscriberOptions{Group: "runner", CommitMetadata: id, DrainTimeout: time.Millisecond})
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
