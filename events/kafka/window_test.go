package kafka

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the window written so that its laws can be seen: every offset handed out, and what became
// of it.
type model struct {
	order []int64
	state map[int64]slotState
	acked map[int64]bool
}

func (m *model) with(s slotState) []int64 {
	var out []int64
	for _, o := range m.order {
		if !m.acked[o] && m.state[o] == s {
			out = append(out, o)
		}
	}
	return out
}

// floor is the highest offset below which everything handed out is acknowledged.
func (m *model) floor(from int64) int64 {
	floor := from
	for _, o := range m.order {
		if !m.acked[o] {
			break
		}
		floor = o + 1
	}
	return floor
}

func TestWindowFollowsItsLaws(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Int64Range(0, 1000).Draw(t, "from")
		w := newWindow[int64](from)
		m := &model{state: map[int64]slotState{}, acked: map[int64]bool{}}
		top := from - 1
		last := from
		pick := func(of []int64) (int64, bool) {
			if len(of) == 0 {
				return 0, false
			}
			return rapid.SampledFrom(of).Draw(t, "offset"), true
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				top += rapid.Int64Range(1, 3).Draw(t, "step")
				w.add(top, top)
				m.order = append(m.order, top)
				m.state[top] = inFlight
			},
			"ack": func(*rapid.T) {
				if o, ok := pick(m.with(inFlight)); ok {
					w.ack(o)
					m.acked[o] = true
				}
			},
			"ack of something not in flight changes nothing": func(*rapid.T) {
				if o, ok := pick(m.with(waiting)); ok {
					if w.ack(o) {
						t.Fatalf("a message that was put back moved the floor")
					}
				}
				w.ack(top + 1)
				w.ack(from - 1)
			},
			"nack": func(*rapid.T) {
				o, ok := pick(m.with(inFlight))
				if !ok {
					return
				}
				var want []int64
				for _, x := range m.with(inFlight) {
					if x >= o {
						want = append(want, x)
						m.state[x] = waiting
					}
				}
				if got := w.nack(o); !slices.Equal(got, want) {
					t.Fatalf("nack of %d put back %v, want %v", o, got, want)
				}
			},
			"again": func(*rapid.T) {
				o, item, ok := w.next()
				waits := m.with(waiting)
				if ok != (len(waits) > 0) || ok && (o != waits[0] || item != o) {
					t.Fatalf("next is %d %v, waiting are %v", o, ok, waits)
				}
				if ok {
					w.again(o, o)
					m.state[o] = inFlight
				}
			},
			"": func(t *rapid.T) {
				if want := m.floor(from); w.done != want {
					t.Fatalf("commit position %d, want %d", w.done, want)
				}
				if w.done < last {
					t.Fatalf("commit position went back from %d to %d", last, w.done)
				}
				last = w.done
				var flying []int64
				w.flying(func(o, item int64) bool {
					if o != item {
						t.Fatalf("offset %d has item %d", o, item)
					}
					flying = append(flying, o)
					return true
				})
				if want := m.with(inFlight); !slices.Equal(flying, want) {
					t.Fatalf("in flight %v, want %v", flying, want)
				}
				if len(m.order) > 0 && !m.acked[m.order[len(m.order)-1]] && w.size() == 0 {
					t.Fatal("window is empty with something unacknowledged")
				}
				if o, _, ok := w.head(); ok && (len(flying) == 0 || o != flying[0]) {
					t.Fatalf("head %d, in flight %v", o, flying)
				}
			},
		})
	})
}

func TestMurmur2IsKafkas(t *testing.T) {
	t.Parallel()
	// From org.apache.kafka.common.utils.UtilsTest.testMurmur2.
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOfN(rapid.Byte(), 0, 9000).Draw(t, "bytes"))
		got := oneLine(s, MaxReasonBytes)
		if len(got) > MaxReasonBytes {
			t.Fatalf("%d bytes", len(got))
		}
		for i, r := range got {
			if r == 0xFFFD && len(got) > i && got[i] != 0xEF || r < ' ' {
				t.Fatalf("%q at %d", got, i)
			}
		}
	})
	if got := oneLine("a\r\nb\x00c\xffd", 100); got != "a  b c\uFFFDd" {
		t.Errorf("%q", got)
	}
}
