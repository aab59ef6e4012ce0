package runner

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/spool"
)

// holed is a relay of which the spool's stdout can be read in parts only.
type holed struct {
	*relay
	written []byte
	known   map[uint64]uint64 // Up to where it was decided with the bytes that were lost, by where these begin.
}

func newHoled(t *testing.T, rt tester, chunk int) *holed {
	t.Helper()
	folder, err := os.MkdirTemp(t.TempDir(), "hole") //nolint:usetesting // One for each round, which removes it.
	if err != nil {
		t.Fatal(err)
	}
	life, abort := context.WithCancelCause(context.Background())
	rt.Cleanup(func() {
		abort(nil)
		_ = os.RemoveAll(folder)
	})
	h := &holed{relay: newRelay(life, rt, folder), known: make(map[uint64]uint64)}
	h.spool = spool.Config{ChunkBytes: chunk, FlushInterval: time.Millisecond, LimitBytes: 1 << 20, StepBytes: 50, Logger: slog.New(slog.DiscardHandler)}
	return h
}

// writes writes to stdout, and waits until it is in the spool.
func (h *holed) writes(data []byte) {
	h.t.Helper()
	if _, err := h.writers[0].Write(data); err != nil {
		h.t.Fatal(err)
	}
	h.written = append(h.written, data...)
	for deadline := time.Now().Add(time.Minute); h.a.spool.Captured(1) < uint64(len(h.written)); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatal("it is not captured")
		}
	}
}

func (h *holed) lost() (list []*executionv1.ByteRange) {
	h.a.unackedMu.Lock()
	defer h.a.unackedMu.Unlock()
	for _, r := range h.a.past.of(1).lost {
		list = append(list, &executionv1.ByteRange{Start: r.GetStart(), End: r.GetEnd()})
	}
	return list
}

// misses takes the next part while nothing can be read that was not published. What is lost then can be read ever after, but it is
// something else: whoever looks at it comes to something else, too.
func (h *holed) misses() {
	h.t.Helper()
	path, done := filepath.Join(h.folder, "stdout"), h.a.past.of(1).mark.Cut
	for _, f := range h.flows.list {
		if f.id == 1 {
			done = f.done
		}
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.Truncate(path, int64(done))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.steps(1)
	for _, r := range h.lost() {
		if _, known := h.known[r.GetStart()]; !known {
			h.known[r.GetStart()] = done
		}
		copy(data[r.GetStart():r.GetEnd()], bytes.Repeat([]byte("#"), len(data)))
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(data, 0); err != nil {
		h.t.Fatal(err)
	}
}

// again kills the worker and begins another one.
func (h *holed) again() {
	h.kill()
	h.begin(false)
}

// published is what the log has of stdout, with spaces for what it does not have.
func (h *holed) published() []byte {
	h.t.Helper()
	out := bytes.Repeat([]byte(" "), len(h.written))
	for _, e := range h.log.list {
		if c, ok := e.Data.(*executionv1.OutputChunk); ok && c.GetStream() == 1 {
			copy(out[c.GetOffset():], c.GetData())
		}
	}
	return out
}

// wants compares what the log has with what was written, but for the lost ranges: between them each part is masked by itself.
func (h *holed) wants(lost []*executionv1.ByteRange) {
	h.t.Helper()
	if h.log.err != nil {
		h.t.Fatal(h.log.err)
	}
	want, hidden := bytes.Repeat([]byte(" "), len(h.written)), make([]bool, len(h.written)+1)
	start := uint64(0)
	for i := range len(lost) + 1 {
		end := uint64(len(h.written))
		if i < len(lost) {
			end = lost[i].GetStart()
		}
		s := h.masker.Stream(start)
		if i > 0 {
			s = h.masker.StreamAfterHole(start)
		}
		out, masked := s.Write(h.written[start:end])
		held := start + uint64(len(out))
		if i < len(lost) {
			held = max(held, h.known[end])
			more, ranges := s.Write(h.written[end:lost[i].GetEnd()])
			out, masked = append(out, more...), append(masked, ranges...)
		}
		rest, ranges := s.Close()
		copy(want[start:end], slices.Concat(out, rest))
		for _, r := range slices.Concat(masked, ranges) {
			for n := r.Start; n < min(r.End, end); n++ {
				hidden[n] = true
			}
		}
		for n := held; n < end && i < len(lost); n++ {
			want[n], hidden[n] = '*', true
		}
		if i < len(lost) {
			start = lost[i].GetEnd()
		}
	}
	if got := h.published(); !bytes.Equal(got, want) {
		h.t.Fatalf("of %q without %v is published\n%q, want\n%q", h.written, lost, got, want)
	}
	var ranges, masked uint64
	for n, yes := range hidden {
		if yes {
			masked++
			if !hidden[n+1] {
				ranges++
			}
		}
	}
	seal := h.seal().GetStreams()[0]
	if fmt.Sprint(seal.GetLost()) != fmt.Sprint(lost) || seal.GetMaskedBytes() != masked || seal.GetMaskedRanges() != ranges {
		h.t.Fatalf("the seal is %v, want %d bytes in %d ranges masked, and %v lost", seal, masked, ranges, lost)
	}
}

// The beginning of a secret is in a part of the spool that cannot be read: its rest, which can be, is hidden. The next worker
// comes to the same bytes, and to no other loss.
func TestTheRestOfASecretBehindALostRangeIsHidden(t *testing.T) {
	t.Parallel()
	const secret, rest = "hunter2-abcabc-long-enough-to-span", "****************************"
	for name, c := range map[string]struct {
		written string
		lost    []int // Parts of 10 bytes.
		want    string
	}{
		"one":                {"first part" + "====hunter" + secret[6:] + ", more____", []int{1}, "first part          " + rest + ", more____"},
		"at the beginning":   {"====hunter" + secret[6:] + ", more____", []int{0}, "          " + rest + ", more____"},
		"one behind another": {"first part" + "==========" + "====hunter" + secret[6:] + ", more____", []int{1, 2}, "first part                    " + rest + ", more____"},
		"on both sides":      {"====hunter" + "2-abcabc-l" + "ong-enough" + "-to-span__", []int{0, 2}, "          **********          ********__"},
		"held back":          {"first hunt" + "er2-abcabc" + secret[14:] + ", more____", []int{1}, "first ****          " + rest[8:] + ", more____"},
	} {
		for _, killed := range []string{"", "after it", "at the end", "both"} {
			t.Run(name+" "+killed, func(t *testing.T) {
				t.Parallel()
				h := newHoled(t, t, 10)
				h.hides(secret)
				h.begin(true)
				h.back = h.log.leave()
				h.writes([]byte(c.written))
				for part := range len(c.written) / 10 {
					if !slices.Contains(c.lost, part) {
						h.steps(1)
						continue
					}
					h.misses()
					if killed == "after it" || killed == "both" {
						h.again()
					}
				}
				lost := h.lost()
				if killed == "at the end" || killed == "both" {
					h.again()
				}
				h.end()
				if got := string(h.published()); got[:len(c.want)] != c.want {
					t.Errorf("%q is published, want %q", got, c.want)
				}
				if strings.Contains(string(h.published()), "long") {
					t.Error("the secret shows")
				}
				h.wants(lost)
			})
		}
	}
}

// Whatever cannot be read, and wherever workers are killed: what lies between the lost ranges is published, and no other worker comes to
// other bytes.
func TestFlowAroundLostRanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		h := newHoled(t, rt, rapid.IntRange(1, 40).Draw(rt, "chunk"))
		words := []string{"abcab", "cabc", "hunter2-abcabc-long-enough-to-span"}
		h.hides(words...)
		h.begin(true)
		for range rapid.IntRange(1, 20).Draw(rt, "actions") {
			switch rapid.IntRange(0, 7).Draw(rt, "action") {
			case 0, 1, 2:
				w := rapid.SampledFrom(words).Draw(rt, "word")
				from := rapid.IntRange(0, len(w)-1).Draw(rt, "from")
				text := w[from:rapid.IntRange(from+1, len(w)).Draw(rt, "to")]
				h.writes([]byte(text + rapid.StringMatching(`[abc]{0,8}`).Draw(rt, "text")))
			case 3:
				h.steps(rapid.IntRange(1, 10).Draw(rt, "steps"))
			case 4, 5:
				if len(h.written) > 0 {
					h.misses()
				}
			case 6:
				h.back()
				h.back = h.log.leave()
			default:
				h.again()
			}
		}
		lost := h.lost()
		h.end()
		h.wants(lost)
	})
}

// What was published is published again as it was, also when what decided it is lost meanwhile.
func TestALossChangesNothingThatWasPublished(t *testing.T) {
	t.Parallel()
	const secret = "hunter2-abcabc-long-enough-to-span"
	begin := func(t *testing.T, written string) *holed {
		t.Helper()
		h := newHoled(t, t, 10)
		h.hides(secret)
		h.begin(true)
		h.back = h.log.leave()
		h.writes([]byte(written))
		return h
	}
	check := func(t *testing.T, h *holed, want string) {
		t.Helper()
		h.end()
		if got := string(h.published()); got != want || h.log.err != nil {
			t.Errorf("%q is published, want %q; %v", got, want, h.log.err)
		}
	}
	t.Run("behind it", func(t *testing.T) {
		t.Parallel()
		h := begin(t, "first hhun")
		h.steps(1) // The last three may be a secret, so the h in front of them is none.
		h.again()
		h.misses()
		h.again()
		check(t, h, "first h   ")
	})
	t.Run("in front of it", func(t *testing.T) {
		t.Parallel()
		h := begin(t, "first part"+"no secret_")
		h.steps(1)
		h.steps(1)
		h.kill()
		if err := os.WriteFile(filepath.Join(h.folder, "stdout"), []byte("other partno secret_"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.begin(false)
		check(t, h, "          no secret_")
	})
	t.Run("and is read again", func(t *testing.T) {
		t.Parallel()
		h := begin(t, "first part"+"no secret_"+"third part")
		h.steps(3)
		for _, text := range []string{"other partno secret_other part", "other partno secret_third part", "first partno secret_third part"} {
			h.kill()
			if err := os.WriteFile(filepath.Join(h.folder, "stdout"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			h.begin(false)
		}
		check(t, h, "          no secret_          ")
		if seal := h.seal().GetStreams()[0]; seal.GetPublishedBytes() != 10 || len(seal.GetLost()) != 2 {
			t.Errorf("the seal is %v", seal)
		}
	})
}

// What was published and cannot be read any more keeps nobody from publishing what follows.
func TestTheOutputInFrontCannotBeRead(t *testing.T) {
	t.Parallel()
	h := newHoled(t, t, 10)
	h.hides("hunter2-abcabc-long-enough-to-span")
	h.begin(true)
	h.writes([]byte("first part"))
	h.steps(1)
	h.again()
	if err := os.Truncate(filepath.Join(h.folder, "stdout"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := h.a.newFlow(1)
	if err != nil {
		t.Fatal(err)
	}
	if out, masked := f.mask.Write([]byte("enough-to-span, more")); string(out) != "**************, more" || len(masked) != 1 || f.decided != 10 {
		t.Errorf("%q %v %d", out, masked, f.decided)
	}
	h.kill()
}
