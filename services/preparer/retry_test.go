package preparer_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/preparer"
)

func retry(t *testing.T) *message.Message {
	t.Helper()
	e, err := events.Producer{Name: "watchdog", Source: "/verbatim/watchdog"}.Event(eventstest.ExecutionID, 2, 1, eventstest.Time, &executionv1.RetryRequested{
		Request: command("sh"), RequestedAt: timestamppb.New(eventstest.Time),
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		t.Fatal(err)
	}
	m.SetContext(t.Context())
	return m
}

func with(l *log, c preparer.Config) *preparer.Preparer {
	return preparer.New(c, l, func(*message.Message) time.Time { return received }, slog.New(slog.DiscardHandler))
}

// A further attempt has a launch spec of its own, and only one, however often it is asked for. One that failed to be written is written.
func TestARetryBecomesWorkOnce(t *testing.T) {
	t.Parallel()
	l := &log{failFrom: 2}
	p := with(l, preparer.Config{StartWithin: time.Hour})
	if p.Handle(retry(t)) == nil {
		t.Fatal("the queue did not take it, and that is no error")
	}
	l.failFrom, l.topics, l.messages = 0, nil, nil
	for range 3 {
		if err := p.Handle(retry(t)); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{events.TopicExecutions, events.TopicWork}; !slices.Equal(l.topics, want) {
		t.Fatalf("published to %v, want %v", l.topics, want)
	}
	for _, m := range l.messages {
		e, err := codec.FromMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		d, ok := e.Data.(*executionv1.Prepared)
		if !ok || e.ID != eventstest.ExecutionID+"/2/preparer/1" || e.Attempt != 2 {
			t.Fatalf("published is %v", e)
		}
		if !d.GetRequestedAt().AsTime().Equal(eventstest.Time) || !d.GetStartBy().AsTime().Equal(received.Add(time.Hour)) {
			t.Errorf("requested at %v, to be started by %v", d.GetRequestedAt().AsTime(), d.GetStartBy().AsTime())
		}
	}
}

func TestTwoDeliveriesOfARetryAtOnce(t *testing.T) {
	t.Parallel()
	l := &blocking{entered: make(chan struct{}), leave: make(chan struct{})}
	p := preparer.New(preparer.Config{}, l, func(*message.Message) time.Time { return received }, slog.New(slog.DiscardHandler))
	var first sync.WaitGroup
	first.Go(func() {
		if err := p.Handle(retry(t)); err != nil {
			t.Error(err)
		}
	})
	<-l.entered
	if p.Handle(retry(t)) == nil {
		t.Error("the second one is done while the first one is not")
	}
	close(l.leave)
	first.Wait()
	if err := p.Handle(retry(t)); err != nil {
		t.Error(err)
	}
	if len(l.topics) != 2 {
		t.Errorf("published to %v", l.topics)
	}
}

// What waited for too long is refused: others have said that it failed.
func TestAnOldRequestIsRefused(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]string{time.Hour: "Prepared", time.Hour + time.Second: "PreparationFailed"} {
		var l log
		p := with(&l, preparer.Config{PrepareWithin: time.Hour, Now: func() time.Time { return received.Add(age) }})
		if err := p.Handle(request(t, command("sh"))); err != nil {
			t.Fatal(err)
		}
		e, err := codec.FromMessage(l.messages[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := string(e.Data.ProtoReflect().Descriptor().Name()); got != want {
			t.Errorf("after %s it is %s, want %s", age, got, want)
		}
		if want == "PreparationFailed" && (slices.Contains(l.topics, events.TopicWork) ||
			e.Data.(*executionv1.PreparationFailed).GetReason() != executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_EXPIRED) {
			t.Errorf("%v was published to %v", e.Data, l.topics)
		}
	}
}

func TestAPolicyThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	var l log
	r := command("sh")
	r.Retry = &executionv1.RetryPolicy{Retries: 1000}
	if err := handle(t, &l, request(t, r)); err != nil {
		t.Fatal(err)
	}
	e, err := codec.FromMessage(l.messages[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, failed := e.Data.(*executionv1.PreparationFailed); !failed {
		t.Errorf("published is %v", e.Data)
	}
}

// blocking lets the first write wait.
type blocking struct {
	log
	once           sync.Once
	entered, leave chan struct{}
}

func (b *blocking) PublishContext(ctx context.Context, topic string, ms ...*message.Message) error {
	b.once.Do(func() { close(b.entered) })
	<-b.leave
	return b.log.PublishContext(ctx, topic, ms...)
}
