package execution

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// shelf keeps a state as the table does: one with a smaller version replaces nothing, of equal ones the last stays.
type shelf struct {
	version uint64
	row     string
	state   *State
}

func (k *shelf) store(t *rapid.T, s *State) {
	row := rowJSON(t, s.Row())
	if k.state != nil && s.limited && k.state.limited && s.Version() == k.version && row != k.row {
		t.Fatalf("two rows have version %d:\n%s", k.version, cmp.Diff(k.row, row))
	}
	if k.state == nil || s.Version() >= k.version {
		k.version, k.row, k.state = s.Version(), row, reload(t, s)
	}
}

// crowds are facts that meet a limit of what is kept of ids, but for one.
func crowds() map[string][]delivery {
	all := map[string][]delivery{"nobody": nil}
	for i := range maxProducers {
		e, err := events.Producer{Name: fmt.Sprint("gateway.", i), Source: "/verbatim/gateway"}.Event(testID, 0, 1, testTime, &executionv1.CancelRequested{RequestedBy: "a"})
		if err != nil {
			panic(err)
		}
		all["producers"] = append(all["producers"], delivery{e, testTime})
		e.ID = fmt.Sprint("build-", i)
		all["foreign ids"] = append(all["foreign ids"], delivery{e, testTime})
	}
	return all
}

// A state is stored when Apply says so, after any number of facts, and goes on from what was stored, also with facts that it had
// before: in the end the row is that of all facts folded at once. Beyond the limits of what is kept too.
func TestStoredIsWhatWasFolded(t *testing.T) {
	t.Parallel()
	all := crowds()
	rapid.Check(t, func(t *rapid.T) {
		crowd := all[rapid.SampledFrom([]string{"nobody", "producers", "foreign ids"}).Draw(t, "crowd")]
		told := story(t)
		if rapid.Bool().Draw(t, "foreign") {
			for i := range told {
				told[i].event.ID = fmt.Sprint("foreign-", i)
			}
		}
		want := New(testID)
		for _, d := range append(crowd[:len(crowd):len(crowd)], told...) {
			want.Apply(d.event, d.received)
		}
		var kept shelf
		s := New(testID)
		changed := false
		for _, d := range crowd {
			changed = s.Apply(d.event, d.received) || changed
		}
		for from, to := 0, 0; ; from = to {
			to = min(len(told), from+rapid.IntRange(1, 7).Draw(t, "batch"))
			for _, d := range told[rapid.IntRange(0, from).Draw(t, "again from"):to] {
				changed = s.Apply(d.event, d.received) || changed
			}
			if changed {
				kept.store(t, s)
				changed = false
			}
			if rapid.Bool().Draw(t, "evicted") && kept.state != nil {
				s = reload(t, kept.state)
			}
			if to == len(told) {
				break
			}
		}
		if kept.state == nil {
			kept.store(t, s)
		}
		if diff := cmp.Diff(rowJSON(t, want.Row()), kept.row); diff != "" {
			t.Fatalf("row (-folded at once +stored):\n%s", diff)
		}
	})
}

// A fact that cannot be told from one that was met changes the state and the version once; when it comes again it changes nothing.
func TestAChangeBeyondTheLimitsIsSeenOnce(t *testing.T) {
	t.Parallel()
	ended := tell(t).in(1, prepared, started, out(0, "x"), noStdin, exit(3), sealed0, noRunner, terminated(1, "TERM")).all
	for name, crowd := range crowds() {
		s := New(testID)
		for _, d := range crowd {
			s.Apply(d.event, d.received)
		}
		for i := range ended {
			if name == "foreign ids" {
				ended[i].ID = fmt.Sprint("end-", i)
			}
			before := s.Version()
			if !s.Apply(ended[i], testTime) || s.Version() != before+1 {
				t.Errorf("%s: fact %d: the version was %d and is %d", name, i, before, s.Version())
			}
		}
		s = reload(t, s)
		before, version := rowJSON(t, s.Row()), s.Version()
		for i, e := range ended {
			if s.Apply(e, testTime.Add(time.Hour)) {
				t.Errorf("%s: fact %d changes the state once more", name, i)
			}
		}
		if after := rowJSON(t, s.Row()); after != before || s.Version() != version {
			t.Errorf("%s:\n%s", name, cmp.Diff(before, after))
		}
	}
}

// Of two deletions one is shown, in any order, and the version says that the row is another one.
func TestTwoDeletions(t *testing.T) {
	t.Parallel()
	var all []events.Event
	for _, by := range []string{"ann", "bob", "cyn"} {
		e, err := events.Producer{Name: "delete." + by, Source: "/verbatim/delete"}.Event(testID, 0, 1, testTime, &executionv1.ExecutionDeleted{RequestedBy: by})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	want := Fold(testID, all)
	if want.Error == nil || *want.Error != "deleted by ann" {
		t.Errorf("%v", want.Error)
	}
	for _, order := range [][]int{{2, 1, 0}, {1, 2, 0}, {0, 2, 1}} {
		s := New(testID)
		for _, i := range order {
			before := s.Version()
			if !s.Apply(all[i], testTime) || s.Version() <= before || s.Apply(all[i], testTime) {
				t.Errorf("order %v: after the deletion by %d the version is %d and was %d", order, i, s.Version(), before)
			}
			s = reload(t, s)
		}
		if diff := cmp.Diff(want, s.Row()); diff != "" {
			t.Errorf("order %v:\n%s", order, diff)
		}
	}
}
