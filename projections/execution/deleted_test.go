package execution

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Whatever else is known, before or after: the row says that it was deleted, and nothing more.
func TestADeletedExecutionIsForgotten(t *testing.T) {
	t.Parallel()
	producer := events.Producer{Name: "delete", Source: "/verbatim/delete"}
	deletion, err := producer.Event(testID, 0, 1, testTime, &executionv1.ExecutionDeleted{RequestedBy: "ann", Reason: "it named a customer"})
	if err != nil {
		t.Fatal(err)
	}
	alone := New(testID)
	alone.Apply(deletion, time.Time{})
	want, stored := alone.Row(), must(alone.MarshalBinary())(t)
	if want.Status != StatusDeleted || *want.Error != "deleted by ann: it named a customer" || !want.Sealed || want.Complete != nil {
		t.Errorf("%+v", want)
	}
	rapid.Check(t, func(t *rapid.T) {
		deliveries := append(story(t), delivery{deletion, testTime})
		s := New(testID)
		for _, i := range rapid.Permutation(indexes(len(deliveries))).Draw(t, "order") {
			s.Apply(deliveries[i].event, deliveries[i].received)
			if rapid.IntRange(0, 9).Draw(t, "stored in between") == 0 {
				b, err := s.MarshalBinary()
				if err != nil {
					t.Fatal(err)
				}
				if s, err = Load(b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if diff := cmp.Diff(want, s.Row()); diff != "" || !s.Deleted() {
			t.Fatalf("row (-alone +among others):\n%s", diff)
		}
		b, err := s.MarshalBinary()
		if err != nil || string(b) != string(stored) {
			t.Fatalf("the state holds something besides: %q: %v", b, err)
		}
	})
	if strings.Contains(string(stored), "sh") {
		t.Errorf("state %q", stored)
	}
}

func indexes(n int) []int {
	is := make([]int, n)
	for i := range is {
		is[i] = i
	}
	return is
}

func must(b []byte, err error) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}
