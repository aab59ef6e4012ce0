package sink_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"verbatim.dev/services/internal/batch"
	"verbatim.dev/services/internal/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var limits = batch.Config{Items: 1000, Bytes: 1 << 20, Delay: 100 * time.Millisecond}

// run starts a sink of texts; "-" stands for a message that nothing is stored of.
func run(t *testing.T, l batch.Config, store func(ctx context.Context, items []string) error) (in chan<- *message.Message, stop func(), ended <-chan struct{}) {
	t.Helper()
	messages, done := make(chan *message.Message), make(chan struct{})
	s := sink.New(sink.Config[string]{Limits: l, Store: store, Decode: func(m *message.Message) (string, bool) {
		return string(m.Payload), string(m.Payload) != "-"
	}})
	go func() { defer close(done); s.Run(messages) }()
	return messages, s.Stop, done
}

func send(in chan<- *message.Message, texts ...string) (sent []*message.Message) {
	for _, text := range texts {
		m := message.NewMessage("", []byte(text))
		in <- m
		sent = append(sent, m)
	}
	return sent
}

// settled counts the answers that are there.
func settled(ms []*message.Message) (acked, nacked int) {
	for _, m := range ms {
		select {
		case <-m.Acked():
			acked++
		case <-m.Nacked():
			nacked++
		default:
		}
	}
	return acked, nacked
}

func expect(t *testing.T, when string, ms []*message.Message, acked, nacked int) {
	t.Helper()
	if a, n := settled(ms); a != acked || n != nacked {
		t.Errorf("%s: %d acknowledged and %d given back, want %d and %d", when, a, n, acked, nacked)
	}
}

func TestAcknowledgedWhenStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storing, stored := make(chan []string), make(chan error)
		in, _, ended := run(t, limits, func(_ context.Context, items []string) error {
			storing <- items
			return <-stored
		})
		first := send(in, "a", "-", "b")
		if got := <-storing; !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("stored %q", got)
		}
		expect(t, "while it is stored", first, 0, 0)
		second := send(in, "c") // The next batch is gathered meanwhile.
		stored <- nil
		synctest.Wait()
		expect(t, "stored", first, 3, 0)
		<-storing
		stored <- errors.New("not stored")
		synctest.Wait()
		expect(t, "not stored", second, 0, 1)
		only := send(in, "-")    // A batch of nothing to store asks nobody.
		time.Sleep(limits.Delay) // In the bubble's own time.
		synctest.Wait()
		expect(t, "nothing to store", only, 1, 0)
		close(in)
		<-ended
	})
}

// What is in memory while the store stands still are three batches, and they come out in order.
func TestASlowStore(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]batch.Config{
		"by number": {Items: 700, Bytes: 1 << 30, Delay: time.Hour},
		"by size":   {Items: 1 << 30, Bytes: 700 * 259, Delay: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				gate, got := make(chan struct{}), []string{}
				in, _, ended := run(t, l, func(_ context.Context, items []string) error {
					<-gate
					got = append(got, items...)
					return nil
				})
				taken, want := 0, []string{}
				go func() {
					defer close(in)
					for i := range 2800 {
						text := strconv.Itoa(i + 100)
						want = append(want, text[len(text)-3:])
						send(in, text[len(text)-3:])
						taken++
					}
				}()
				synctest.Wait()
				if taken != 2100 {
					t.Errorf("%d messages are in memory, want 3 batches of 700", taken)
				}
				close(gate)
				<-ended
				if !slices.Equal(got, want) {
					t.Errorf("%d stored, in another order than they came", len(got))
				}
			})
		})
	}
}

func TestTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, stop, ended := run(t, limits, func(ctx context.Context, _ []string) error {
			<-ctx.Done() // The store is away.
			return ctx.Err()
		})
		first := send(in, "a")
		time.Sleep(2 * limits.Delay) // In the bubble's own time.
		second := send(in, "b")
		close(in) // The subscriber has given up.
		synctest.Wait()
		expect(t, "not gathered to the end", second, 0, 1)
		stop()
		<-ended
		expect(t, "under way", first, 0, 1)
	})
}

// A message that was taken away is not stored: somebody else has it now.
func TestTakenAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []string
		in, _, ended := run(t, limits, func(_ context.Context, items []string) error {
			got = items
			return nil
		})
		gone, cancel := context.WithCancel(t.Context())
		m := message.NewMessage("", []byte("gone"))
		m.SetContext(gone)
		in <- m
		send(in, "here")
		cancel()
		time.Sleep(limits.Delay) // In the bubble's own time.
		synctest.Wait()
		close(in)
		<-ended
		if !slices.Equal(got, []string{"here"}) {
			t.Errorf("stored %q", got)
		}
	})
}
