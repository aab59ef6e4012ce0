package execution

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func changed(s *executionv1.OutputSealed, change func(stdout *executionv1.StreamSeal)) *executionv1.OutputSealed {
	c := proto.Clone(s).(*executionv1.OutputSealed)
	change(c.Streams[0])
	return c
}

// held says that another process had stdout.
func held(s *executionv1.OutputSealed) *executionv1.OutputSealed {
	return changed(s, func(s *executionv1.StreamSeal) { s.PipeStillHeld = true })
}

func TestMaskedRanges(t *testing.T) {
	t.Parallel()
	hello := seal(5, "hello", 0, "")
	hello.Streams[0].MaskedRanges, hello.Streams[0].MaskedBytes = 3, 4
	r := Fold(testID, tell(t).in(1, out(0, "hello"), hello).all)
	if r.StdoutMaskedRanges == nil || *r.StdoutMaskedRanges != 3 || r.StderrMaskedRanges == nil || *r.StderrMaskedRanges != 0 || r.Complete == nil || !*r.Complete {
		t.Errorf("%v %v %v", r.StdoutMaskedRanges, r.StderrMaskedRanges, r.Complete)
	}
	if r := Fold(testID, tell(t).in(1, out(0, "hello")).all); r.StdoutMaskedRanges != nil {
		t.Errorf("not sealed, and yet %d ranges are masked", *r.StdoutMaskedRanges)
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	hello := seal(5, "hello", 0, "")
	ax := sha256.Sum256([]byte("ahead" + "tail"))
	elided := func(s *executionv1.StreamSeal) {
		s.CapturedBytes, s.PublishedBytes, s.PublishedSha256 = 1009, 9, ax[:]
		s.Elided = []*executionv1.ByteRange{{Start: 5, End: 1005}}
	}
	cases := []struct {
		name  string
		facts []proto.Message
		// complete digest sealed missing
		want string
	}{
		{"not sealed", []proto.Message{out(0, "hello")}, "- - false []"},
		{"everything", []proto.Message{out(0, "hello"), hello}, "true true true []"},
		{"everything, the end first", []proto.Message{hello, out(4, "o"), out(1, "ell"), out(0, "h")}, "true true true []"},
		{"no output", []proto.Message{sealed0}, "true true true []"},
		{"a hole before the seal", []proto.Message{out(0, "he"), out(4, "o")}, "- - false [{stdout 2 4}]"},
		{"a hole", []proto.Message{out(0, "he"), out(4, "o"), hello}, "false - true [{stdout 2 4}]"},
		{"the end is missing", []proto.Message{out(0, "he"), hello}, "false - true [{stdout 2 5}]"},
		{"everything is missing", []proto.Message{hello}, "false - true [{stdout 0 5}]"},
		{"other bytes", []proto.Message{out(0, "hellO"), hello}, "false false true []"},
		{"no digest", []proto.Message{out(0, "hello"), changed(hello, func(s *executionv1.StreamSeal) { s.PublishedSha256 = nil })}, "true - true []"},
		{"pipe held", []proto.Message{out(0, "hello"), changed(hello, func(s *executionv1.StreamSeal) { s.PipeStillHeld = true })}, "false true true []"},
		{"more than sealed", []proto.Message{out(0, "hello!"), hello}, "false - true []"},
		{"elided", []proto.Message{out(0, "ahead"), out(1005, "tail"), changed(hello, elided)}, "true true true []"},
		{"elided, seal first", []proto.Message{changed(hello, elided), out(1005, "tail"), out(0, "ahead")}, "true true true []"},
		{"elided, and yet there", []proto.Message{out(0, "ahead"), out(7, "x"), out(1005, "tail"), changed(hello, elided)}, "false - true []"},
		{"lost", []proto.Message{out(0, "hel"), changed(hello, func(s *executionv1.StreamSeal) {
			s.PublishedBytes, s.Lost = 3, []*executionv1.ByteRange{{Start: 3, End: 5}}
			sum := sha256.Sum256([]byte("hel"))
			s.PublishedSha256 = sum[:]
		})}, "false true true [{stdout 3 5}]"},
		{"contradicting bytes", []proto.Message{out(0, "hello"), out(1, "E"), hello}, "false - true []"},
		{"same bytes in another cut", []proto.Message{out(0, "hello"), out(1, "ell"), hello}, "true true true []"},
		{"one stream is not sealed", []proto.Message{out(0, "hello"), &executionv1.OutputSealed{Streams: hello.Streams[:1]}}, "- true true []"},
		{"two seals", []proto.Message{out(0, "hello"), hello, sealed0}, "false - true []"},
		{"late", []proto.Message{out(0, "hello"), held(seal(5, "hello", 0, "")), out(5, " you"), seal(9, "hello you", 0, "")}, "true true true []"},
		{"late, the last seal first", []proto.Message{seal(9, "hello you", 0, ""), out(5, " you"), held(seal(5, "hello", 0, "")), out(0, "hello")}, "true true true []"},
		{"late, and still held", []proto.Message{out(0, "hello"), held(seal(5, "hello", 0, "")), out(5, " you"), held(seal(9, "hello you", 0, ""))}, "false true true []"},
		{"late, and not sealed again", []proto.Message{out(0, "hello"), held(seal(5, "hello", 0, "")), out(7, "ou")}, "false - true [{stdout 5 7}]"},
		{"late bytes are missing", []proto.Message{out(0, "hello"), held(seal(5, "hello", 0, "")), seal(9, "hello you", 0, "")}, "false - true [{stdout 5 9}]"},
		{"nothing came late", []proto.Message{out(0, "hello"), held(seal(5, "hello", 0, "")), hello}, "true true true []"},
		{"late, and it was not held", []proto.Message{out(0, "hello you"), hello, seal(9, "hello you", 0, "")}, "false - true []"},
		{"late seal leaves out what was there", []proto.Message{out(0, "ahead"), out(1005, "tail"), held(seal(5, "ahead", 0, "")), changed(hello, func(s *executionv1.StreamSeal) {
			elided(s)
			s.Elided[0].Start--
			s.PublishedBytes--
		})}, "false - true []"},
		{"not prepared", []proto.Message{noSuch}, "true - true []"},
		{"not started", []proto.Message{noStart(notFound, "x")}, "- - false []"},
		{"not started, sealed", []proto.Message{noStart(notFound, "x"), sealed0}, "true true true []"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := Fold(testID, tell(t).in(1, c.facts...).all)
			if got := fmt.Sprint(show(r.Complete), " ", show(r.StdoutDigestMatch), " ", r.Sealed, " ", r.Missing); got != c.want {
				t.Fatalf("%s, want %s\n%s", got, c.want, rowJSON(t, r))
			}
		})
	}
}

func TestContradictions(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		facts []proto.Message
		want  []string
	}{
		{"none", []proto.Message{prepared, started, out(0, "x"), exit(0), seal(1, "x", 0, "")}, []string{}},
		{"two exits", []proto.Message{exit(3), exit(4)}, []string{"attempt 1: different ProcessExited facts, the row shows that of /verbatim/runner/r1, sequence 1"}},
		{"one exit said twice", []proto.Message{exit(3), exit(3)}, []string{}},
		{"two lost runners are none", []proto.Message{noRunner, &executionv1.RunnerLost{Runner: "r2"}}, []string{}},
		{"ran and did not start", []proto.Message{started, noStart(notFound, "x")}, []string{"attempt 1: StartFailed, and facts of a process"}},
		{"prepared and not", []proto.Message{prepared, noSuch}, []string{"attempt 1: PreparationFailed, and facts of a process or its launch spec"}},
		{"bytes", []proto.Message{out(0, "abcd"), out(2, "xd")}, []string{"attempt 1: stdout has different bytes for one position, first at 2"}},
		{"past the seal", []proto.Message{sealed0, errs(0, "abc")}, []string{"attempt 1: stderr has bytes up to 3, the seal says 0"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, Fold(testID, tell(t).in(1, c.facts...).all).Contradictions); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// The bytes of the fact with the smaller sequence are shown, in both orders.
func TestContradictingBytesArePicked(t *testing.T) {
	t.Parallel()
	all := tell(t).in(1, out(0, "abcdef"), out(2, "XY")).all
	for _, order := range [][]events.Event{{all[0], all[1]}, {all[1], all[0]}} {
		if got := *Fold(testID, order).Stdout; got != "abcdef" {
			t.Errorf("shown is %q", got)
		}
	}
}

// A long stream keeps its first and last 64 KiB, says how much is left out, and its digest is still worked out.
func TestLongStream(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	text := []byte(strings.Repeat("0123456789abcde\n", size/16))
	s := tell(t)
	for at := 0; at < size; at += 5000 {
		s.in(1, out(at, string(text[at:min(size, at+5000)])))
	}
	s.in(1, seal(size, string(text), 0, ""))
	r := Fold(testID, s.all)
	want := string(text[:headBytes]) + fmt.Sprintf("\n… %d bytes left out …\n", size-headBytes-tailBytes) + string(text[size-tailBytes:])
	if *r.Stdout != want {
		t.Fatalf("the preview has %d bytes, want %d", len(*r.Stdout), len(want))
	}
	if !*r.StdoutTruncated || *r.StdoutBytesTruncated != size-headBytes-tailBytes || *r.StdoutBytes != size || !*r.Complete {
		t.Fatal(show(r.StdoutTruncated), show(r.StdoutBytesTruncated), show(r.StdoutBytes), show(r.Complete))
	}
	state := New(testID)
	for _, e := range s.all {
		state.Apply(e, time.Time{})
	}
	stored, err := state.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if len(stored) > headBytes+tailBytes+4096 {
		t.Fatalf("the stored state has %d bytes", len(stored))
	}
}

// When too much waits for a hole to be filled, the digest is given up: complete is then unknown, never true.
func TestTooMuchWaits(t *testing.T) {
	t.Parallel()
	const chunk, count = 1 << 20, MaxWaitingBytes>>20 + 1
	all := bytes.Repeat([]byte("x"), 1+chunk*count)
	s := tell(t)
	for i := range count {
		s.in(1, out(1+i*chunk, string(all[:chunk])))
	}
	s.in(1, out(0, "x"), seal(len(all), string(all), 0, ""))
	state := New(testID)
	for _, e := range s.all {
		state.Apply(e, time.Time{})
		if state.waiting > MaxWaitingBytes {
			t.Fatalf("%d bytes wait", state.waiting)
		}
	}
	r := state.Row()
	if r.Complete != nil || r.StdoutDigestMatch != nil || len(r.Missing) != 0 {
		t.Fatal(show(r.Complete), show(r.StdoutDigestMatch), r.Missing)
	}
	// In order, as from the archive, nothing waits, and it is proven.
	last := len(s.all) - 1
	ordered := append([]events.Event{s.all[last-1]}, s.all[:last-1]...)
	if r := Fold(testID, append(ordered, s.all[last])); r.Complete == nil || !*r.Complete {
		t.Fatal(show(r.Complete), show(r.StdoutDigestMatch))
	}
}

func TestPreview(t *testing.T) {
	t.Parallel()
	piece := func(offset int, text string) segment { return segment{offset: uint64(offset), data: []byte(text)} }
	cases := []struct {
		name   string
		pieces []segment
		size   uint64
		closed bool
		want   string
		hidden uint64
	}{
		{"empty", nil, 0, true, "", 0},
		{"whole", []segment{piece(0, "zwölf\n")}, 7, true, "zwölf\n", 0},
		{"wrong bytes", []segment{piece(0, "a\xffb\x00\xe2\x82")}, 6, true, "a\uFFFDb\x00\uFFFD\uFFFD", 0},
		{"a character is not whole yet", []segment{piece(0, "a\xe2\x82")}, 3, false, "a", 2},
		{"cut on both sides of a gap", []segment{piece(0, "a\xe2\x82"), piece(10, "\x82\xacb")}, 13, true, "a\n… 11 bytes left out …\nb", 11},
		{"the beginning is missing", []segment{piece(3, "d")}, 4, true, "\n… 3 bytes left out …\nd", 3},
		{"the end is missing", []segment{piece(0, "a")}, 4, true, "a\n… 3 bytes left out …\n", 3},
		{"all is missing", nil, 9, true, "\n… 9 bytes left out …\n", 9},
		{"many continuation bytes are no character", []segment{piece(5, "\x80\x80\x80\x80b")}, 10, true, "\n… 8 bytes left out …\n\uFFFDb", 8},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, hidden := preview(c.pieces, c.size, c.closed)
			if got != c.want || hidden != c.hidden {
				t.Fatalf("%q with %d bytes hidden, want %q with %d", got, hidden, c.want, c.hidden)
			}
		})
	}
}

// What is known to be empty is "", what is not known is nil.
func TestEmptyIsNotUnknown(t *testing.T) {
	t.Parallel()
	if r := Fold(testID, tell(t).in(1, started).all); r.Stdout != nil || r.StdoutBytes != nil || r.StdoutTruncated != nil || r.StdoutBytesTruncated != nil {
		t.Fatal(rowJSON(t, r))
	}
	for name, facts := range map[string][]proto.Message{"sealed": {started, exit(0), sealed0}, "never prepared": {noSuch}} {
		r := Fold(testID, tell(t).in(1, facts...).all)
		if show(r.Stdout)+show(r.StdoutBytes)+show(r.StdoutTruncated)+show(r.StdoutBytesTruncated) != "0false0" {
			t.Errorf("%s: %s", name, rowJSON(t, r))
		}
	}
}

// Two versions of bytes that are kept nowhere: which of them is in the digest depends on the order, so the
// digest says nothing, in every order.
func TestContradictionOutsideOfWhatIsKept(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("0123456789", 40_000)
	all := tell(t).in(1, out(0, text), out(100_000, "other"), seal(len(text), text, 0, "")).all
	for _, order := range [][]int{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}} {
		var es []events.Event
		for _, i := range order {
			es = append(es, all[i])
		}
		if r := Fold(testID, es); r.Complete != nil || r.StdoutDigestMatch != nil {
			t.Errorf("order %v: complete %s, digest %s", order, show(r.Complete), show(r.StdoutDigestMatch))
		}
	}
	if r := Fold(testID, []events.Event{all[0], all[0], all[2], all[0]}); !*r.Complete {
		t.Error("a resend of one fact was taken for a contradiction")
	}
}
