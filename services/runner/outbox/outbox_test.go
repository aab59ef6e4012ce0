package outbox_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// publisher is a log that answers as it is told.
type publisher struct {
	mu     sync.Mutex
	calls  [][]string
	answer func(ctx context.Context, call int) error
}

func (p *publisher) PublishContext(ctx context.Context, _ string, msgs ...*message.Message) error {
	p.mu.Lock()
	ids := make([]string, len(msgs))
	for i, m := range msgs {
		ids[i] = m.UUID[strings.LastIndex(m.UUID, "/")+1:]
	}
	p.calls = append(p.calls, ids)
	n := len(p.calls)
	p.mu.Unlock()
	if p.answer == nil {
		return nil
	}
	return p.answer(ctx, n)
}

func newOutbox(t *testing.T, p outbox.Publisher, limit int) *outbox.Outbox {
	t.Helper()
	return outbox.New(outbox.Config{
		Producer:  events.Producer{Name: "runner", Source: "/verbatim/runner/r1"},
		Execution: eventstest.ExecutionID, Attempt: 1, Topic: events.TopicExecutions,
		LimitBytes: limit, Publisher: p, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

func chunk(n int) *executionv1.OutputChunk {
	return &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Data: make([]byte, n)}
}

// The log is away for an hour: the same messages are tried over and over, and then all arrive in order.
func TestTriesForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := &publisher{answer: func(context.Context, int) error {
			if time.Since(began) < time.Hour {
				return backoff.Permanent(errors.New("not enough replicas")) // Nothing is permanent here.
			}
			return nil
		}}
		o := newOutbox(t, p, 1<<20)
		for range 3 {
			if err := o.Add(time.Now(), &executionv1.WaitFailed{Cause: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		o.Close()
		if err := o.Send(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(p.calls); n < 600 || n > 2000 {
			t.Errorf("%d calls in an hour", n)
		}
		for _, ids := range p.calls {
			if !slices.Equal(ids, []string{"1", "2", "3"}) {
				t.Fatalf("a call with %v", ids)
			}
		}
	})
}

func TestRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		acknowledge := make(chan struct{})
		p := &publisher{answer: func(context.Context, int) error { <-acknowledge; return nil }}
		o := newOutbox(t, p, 100_000)
		sent := make(chan error)
		go func() { sent <- o.Send(t.Context()) }()
		for range 2 {
			if err := o.AddWhenRoom(t.Context(), time.Now(), chunk(40_000)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := o.AddWhenRoom(ctx, time.Now(), chunk(40_000)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a third one found room: %v", err)
		}
		// The end of the process does not wait for its output.
		if err := o.Add(time.Now(), &executionv1.ProcessExited{}); err != nil {
			t.Fatal(err)
		}
		third := make(chan error)
		go func() { third <- o.AddWhenRoom(t.Context(), time.Now(), chunk(1<<20)) }()
		close(acknowledge)
		if err := <-third; err != nil { // Larger than the limit: it gets in when the queue is empty.
			t.Fatal(err)
		}
		o.Close()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if got := slices.Concat(p.calls...); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
			t.Errorf("sent %v", got)
		}
	})
}

func TestManyAddersOneOrder(t *testing.T) {
	t.Parallel()
	p := &publisher{}
	o := newOutbox(t, p, 50_000)
	sent := make(chan error, 1)
	go func() { sent <- o.Send(t.Context()) }()
	var adders sync.WaitGroup
	for range 8 {
		adders.Go(func() {
			for range 250 {
				if err := o.AddWhenRoom(t.Context(), time.Now(), chunk(1000)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	adders.Wait()
	o.Close()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	got := slices.Concat(p.calls...)
	if len(got) != 2000 || o.Last() != 2000 {
		t.Fatalf("%d sent, the last number is %d", len(got), o.Last())
	}
	for i, id := range got {
		if id != strconv.Itoa(i+1) {
			t.Fatalf("%s stands at place %d", id, i+1)
		}
	}
}

func TestWhatIsNotSentIsSaid(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	p := &publisher{answer: func(_ context.Context, call int) error {
		if call == 1 {
			return nil
		}
		cancel()
		return errors.New("no broker")
	}}
	o := newOutbox(t, p, 1<<20)
	for range 501 { // The first batch takes 500.
		if err := o.Add(time.Now(), &executionv1.WaitFailed{}); err != nil {
			t.Fatal(err)
		}
	}
	o.Close()
	if err := o.Send(ctx); err == nil || !strings.Contains(err.Error(), "facts 501 to 501 are not acknowledged") {
		t.Errorf("send: %v", err)
	}
	if err := o.Add(time.Now(), &executionv1.WaitFailed{}); !errors.Is(err, outbox.ErrClosed) {
		t.Errorf("add after close: %v", err)
	}
}

func TestBadFactUsesNoNumber(t *testing.T) {
	t.Parallel()
	o := newOutbox(t, &publisher{}, 1<<20)
	if err := o.Add(time.Now(), chunk(0)); err == nil {
		t.Error("an empty chunk was taken")
	}
	if err := o.Add(time.Now(), chunk(1)); err != nil || o.Last() != 1 {
		t.Errorf("last number %d, %v", o.Last(), err)
	}
}

// A process that ends at once costs one call; one that goes on is announced after a moment; anything else waits for nothing.
func TestFollowedFactWaitsForItsFollower(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &publisher{}
		o := outbox.New(outbox.Config{
			Producer:  events.Producer{Name: "runner", Source: "/verbatim/runner/r1"},
			Execution: eventstest.ExecutionID, Attempt: 1, Topic: events.TopicExecutions, LimitBytes: 1 << 20, Publisher: p,
			Followed: func(f proto.Message) bool { _, is := f.(*executionv1.ProcessStarted); return is },
		})
		sent := make(chan error, 1)
		go func() { sent <- o.Send(t.Context()) }()
		add := func(f proto.Message) {
			if err := o.Add(time.Now(), f); err != nil {
				t.Error(err)
			}
		}
		calls := func(after time.Duration, want ...[]string) {
			t.Helper()
			time.Sleep(after) // Of the bubble's clock.
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if !slices.EqualFunc(p.calls, want, slices.Equal) {
				t.Fatalf("calls %v, want %v", p.calls, want)
			}
		}
		add(&executionv1.ProcessStarted{Pid: 1})
		calls(4 * time.Millisecond)
		calls(time.Millisecond, []string{"1"})
		add(&executionv1.ProcessStarted{Pid: 2})
		calls(time.Millisecond, []string{"1"})
		add(chunk(1))
		calls(0, []string{"1"}, []string{"2", "3"})
		add(&executionv1.ProcessStarted{Pid: 3})
		o.Close()
		calls(0, []string{"1"}, []string{"2", "3"}, []string{"4"})
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

// A record waits for the disk while something is queued: that is published and acknowledged all the same, which is what gives the disk room.
func TestARecordThatWaitsHoldsUpNoPublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		room := make(chan struct{})
		o := outbox.New(outbox.Config{
			Producer:  events.Producer{Name: "runner", Source: "/verbatim/runner/r1"},
			Execution: eventstest.ExecutionID, Attempt: 1, Topic: events.TopicExecutions,
			LimitBytes: 1 << 20, Publisher: &publisher{}, Logger: slog.New(slog.DiscardHandler),
			Record: func(sequence uint64, _ time.Time, _ proto.Message) {
				if sequence == 3 {
					<-room
				}
			},
			Acknowledged: func(sequence uint64) {
				if sequence == 2 {
					close(room) // The spool is trimmed.
				}
			},
		})
		for range 2 {
			if err := o.Add(time.Now(), chunk(1000)); err != nil {
				t.Fatal(err)
			}
		}
		var added sync.WaitGroup
		added.Go(func() {
			if err := o.AddWhenRoom(t.Context(), time.Now(), chunk(1000)); err != nil {
				t.Error(err)
			}
			o.Close()
		})
		synctest.Wait() // It waits for the disk.
		if err := o.Send(t.Context()); err != nil {
			t.Fatal(err)
		}
		added.Wait()
		if o.Last() != 3 {
			t.Errorf("the last number is %d", o.Last())
		}
	})
}
