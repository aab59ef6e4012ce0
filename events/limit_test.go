package events_test

import (
	"math"
	"testing"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit      *executionv1.OutputLimit
		head, tail uint64
	}{
		{nil, 2 << 20, 8 << 20},
		{&executionv1.OutputLimit{None: true, HeadBytes: 1}, math.MaxUint64, 0},
		{&executionv1.OutputLimit{}, 0, 0},
		{events.LimitOutput(10 << 20), 2 << 20, 8 << 20},
		{events.LimitOutput(0), 0, 0},
		{events.LimitOutput(1), 0, 1},
		{events.LimitOutput(7), 1, 6},
		{events.LimitOutput(1000), 200, 800},
		{events.LimitOutput(1 << 30), 1<<30 - 8<<20, 8 << 20},
		{events.LimitOutput(math.MaxUint64), math.MaxUint64 - 8<<20, 8 << 20},
	} {
		if head, tail := events.HeadAndTail(c.limit); head != c.head || tail != c.tail {
			t.Errorf("%v: %d and %d, want %d and %d", c.limit, head, tail, c.head, c.tail)
		}
		if err := events.ValidateOutputLimit(c.limit); err != nil {
			t.Errorf("%v: %v", c.limit, err)
		}
	}
	if err := events.ValidateOutputLimit(&executionv1.OutputLimit{TailBytes: events.MaxTailBytes + 1}); err == nil {
		t.Error("a tail that readers cannot keep is taken")
	}
}
