package batch_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"verbatim.dev/services/internal/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestABatchWaitsForItsDelayAndKeepsTheOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got [][]int
		b := batch.New(batch.Config{Items: 100, Bytes: 1000, Delay: time.Second}, func(_ context.Context, items []int) error {
			got = append(got, slices.Clone(items))
			return nil
		})
		begun := time.Now()
		var adders sync.WaitGroup
		for i := range 3 {
			adders.Go(func() {
				if err := b.Add(t.Context(), i, 1); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // Each is in the batch before the next comes.
		}
		adders.Wait()
		if took := time.Since(begun); took != time.Second {
			t.Errorf("flushed after %s, want 1s", took)
		}
		b.Stop()
		if len(got) != 1 || !slices.Equal(got[0], []int{0, 1, 2}) {
			t.Errorf("batches %v", got)
		}
	})
}

func TestAFullBatchDoesNotWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]batch.Config{
		"items": {Items: 4, Bytes: 1 << 30, Delay: time.Hour},
		"bytes": {Items: 1 << 30, Bytes: 40, Delay: time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			largest := 0
			b := batch.New(c, func(_ context.Context, items []int) error {
				largest = max(largest, len(items))
				time.Sleep(time.Second) // A slow store, in the bubble's own time.
				return nil
			})
			var adders sync.WaitGroup
			for i := range 16 {
				adders.Go(func() {
					if err := b.Add(t.Context(), i, 10); err != nil {
						t.Error(err)
					}
				})
			}
			adders.Wait()
			b.Stop()
			if largest != 4 {
				t.Errorf("%s: the largest batch had %d items, want 4", name, largest)
			}
		})
	}
}

func TestEverybodyLearnsOfAFailedFlush(t *testing.T) {
	t.Parallel()
	failure := errors.New("disk full")
	b := batch.New(batch.Config{Items: 2, Bytes: 100, Delay: time.Hour}, func(context.Context, []int) error { return failure })
	defer b.Stop()
	errs := make(chan error, 2)
	for i := range 2 {
		go func() { errs <- b.Add(t.Context(), i, 1) }()
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, failure) {
			t.Errorf("got %v", err)
		}
	}
}

func TestStopEndsAHangingFlushAndLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	b := batch.New(batch.Config{Items: 1, Bytes: 100, Delay: time.Hour}, func(ctx context.Context, _ []int) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})
	errs := make(chan error, 2)
	go func() { errs <- b.Add(t.Context(), 0, 1) }()
	<-entered
	go func() { errs <- b.Add(t.Context(), 1, 1) }()
	b.Stop()
	for range 2 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if err := b.Add(t.Context(), 2, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("add after stop: %v", err)
	}
}

func TestAWaiterCanGiveUp(t *testing.T) {
	t.Parallel()
	b := batch.New(batch.Config{Items: 9, Bytes: 100, Delay: time.Hour}, func(context.Context, []int) error { return nil })
	defer b.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Add(ctx, 1, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
