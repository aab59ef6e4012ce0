package interval

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The set must agree with a plain set of numbers, whatever is added.
func TestSetAgreesWithAPlainSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const top = 60
		var s Set
		plain := map[uint64]bool{}
		for range rapid.IntRange(0, 20).Draw(t, "adds") {
			start := rapid.Uint64Range(0, top).Draw(t, "start")
			r := Range{start, start + rapid.Uint64Range(0, 9).Draw(t, "len")}
			if !s.Add(r, 0) {
				t.Fatalf("add %v without a limit was refused", r)
			}
			for x := r.Start; x < r.End; x++ {
				plain[x] = true
			}
		}
		for i, r := range s.Ranges() {
			if r.Len() == 0 || i > 0 && s.Ranges()[i-1].End >= r.Start {
				t.Fatalf("%v are not ascending, disjoint and apart", s.Ranges())
			}
		}
		if s.Len() != uint64(len(plain)) {
			t.Fatalf("Len is %d, want %d", s.Len(), len(plain))
		}
		start := rapid.Uint64Range(0, top).Draw(t, "window")
		window := Range{start, start + rapid.Uint64Range(0, 30).Draw(t, "window length")}
		in, out := Of(s.Within(window)...), Of(s.Without(window)...)
		for x := uint64(0); x < top+20; x++ {
			inside := x >= window.Start && x < window.End
			if s.Contains(x) != plain[x] || in.Contains(x) != (inside && plain[x]) || out.Contains(x) != (inside && !plain[x]) {
				t.Fatalf("%d: set %v, window %v, within %v, without %v", x, s.Ranges(), window, in.Ranges(), out.Ranges())
			}
		}
	})
}

func TestSetLimit(t *testing.T) {
	t.Parallel()
	var s Set
	for i := range uint64(3) {
		if !s.Add(Range{10 * i, 10*i + 1}, 3) {
			t.Fatalf("range %d of 3 was refused", i)
		}
	}
	if s.Add(Range{100, 101}, 3) {
		t.Fatal("a fourth range was taken with a limit of 3")
	}
	if !s.Add(Range{1, 5}, 3) {
		t.Fatal("a range that touches one of the set was refused")
	}
	if diff := cmp.Diff([]Range{{0, 5}, {10, 11}, {20, 21}}, s.Ranges()); diff != "" {
		t.Fatal(diff)
	}
}
