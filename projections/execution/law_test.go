package execution

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

const testID = "019366e0-7c00-7000-8000-0000000000ab"

var testTime = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

type delivery struct {
	event    events.Event
	received time.Time
}

// story draws the facts of an execution: retries, holes, late, unknown, foreign and contradicting facts.
func story(t *rapid.T) []delivery {
	d := &drawer{T: t, next: map[string]uint64{}}
	if d.chance("requested", 80) {
		d.say("gateway", 0, d.request())
		if d.chance("two requests", 10) {
			d.say("gateway", 0, d.request())
		}
	}
	if d.chance("cancel", 20) {
		d.say("gateway", 0, &executionv1.CancelRequested{RequestedBy: "a"})
		d.say("gateway", 0, &executionv1.CancelRequested{RequestedBy: "b"})
	}
	for attempt := uint32(1); attempt <= uint32(rapid.IntRange(0, 3).Draw(t, "attempts")); attempt++ {
		d.attempt(attempt)
	}
	for i := range d.out {
		e := &d.out[i].event
		switch rapid.IntRange(0, 19).Draw(t, "twist") {
		case 0:
			e.ID = "foreign-" + string(rune('a'+rapid.IntRange(0, 5).Draw(t, "foreign id")))
			if e.Type == events.TypeOutputChunk { // two chunks of one id are the exception that the package comment names
				e.ID = fmt.Sprint("foreign-chunk-", i)
			}
		case 1:
			e.Type, e.Data = "com.example.Unknown."+string(rune('a'+i%7)), nil
		case 2:
			e.Time = time.Time{}
		case 3:
			e.Source = "/elsewhere"
		}
	}
	return d.out
}

type drawer struct {
	*rapid.T
	next map[string]uint64
	out  []delivery
	// whole: nothing is lost on the way.
	whole bool
}

func (d *drawer) chance(label string, percent int) bool {
	return rapid.IntRange(0, 99).Draw(d.T, label) < percent
}

func (d *drawer) say(producer string, attempt uint32, data proto.Message) {
	key := producer + string(rune(attempt))
	d.next[key]++
	at := testTime.Add(time.Duration(len(d.out)) * time.Millisecond)
	e, err := events.Producer{Name: producer, Source: "/verbatim/" + producer}.Event(testID, attempt, d.next[key], at, data)
	if err != nil {
		d.Fatal(err)
	}
	if !d.whole && d.chance("lost on the way", 4) {
		return
	}
	d.out = append(d.out, delivery{e, at.Add(time.Second)})
}

func (d *drawer) request() *executionv1.ExecutionRequested {
	return &executionv1.ExecutionRequested{
		What:    &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"sh", rapid.StringN(0, 3, 9).Draw(d.T, "argument")}}},
		Timeout: durationpb.New(time.Second), Labels: map[string]string{"a": "1", "b": "2"},
		Retry: &executionv1.RetryPolicy{
			Retries: uint32(rapid.IntRange(0, 2).Draw(d.T, "retries")),
			RetryOn: rapid.SliceOfN(rapid.SampledFrom([]executionv1.RetryOn{1, 2, 3}), 0, 3).Draw(d.T, "retry on"),
		},
	}
}

func (d *drawer) attempt(n uint32) {
	switch {
	case d.chance("not prepared", 10):
		d.say("preparer", n, &executionv1.PreparationFailed{Reason: 1, Message: "no such action"})
	default:
		d.say("preparer", n, &executionv1.Prepared{Argv: []string{"x"}, RequestedAt: timestamppb.New(testTime)})
	}
	if d.chance("start failed", 10) {
		d.say("runner", n, &executionv1.StartFailed{Reason: executionv1.StartFailureReason(rapid.IntRange(0, 6).Draw(d.T, "reason")), Message: "no"})
	} else if d.chance("started", 90) {
		d.say("runner", n, &executionv1.ProcessStarted{Pid: 7, Runner: "r", ProcessStartedAt: timestamppb.New(testTime)})
	}
	streams := []*drawnStream{d.newStream(1), d.newStream(2)}
	for _, s := range streams {
		d.stream(n, s)
	}
	seal := sealOf(streams)
	if d.chance("stdin", 15) {
		d.say("runner", n, &executionv1.StdinWriteFailed{AcceptedBytes: 1, OfferedBytes: 2, Cause: "broken pipe"})
	}
	if d.chance("terminated", 20) {
		for range rapid.IntRange(1, 3).Draw(d.T, "signals") {
			d.say("runner", n, &executionv1.TerminationStarted{
				Cause:   executionv1.TerminationCause(rapid.IntRange(0, 4).Draw(d.T, "cause")),
				Signals: []*executionv1.SentSignal{{Signal: &executionv1.Signal{Number: 15, Name: "TERM"}}},
			})
		}
	}
	for range rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2}).Draw(d.T, "exits") {
		d.say("runner", n, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: int32(rapid.IntRange(0, 2).Draw(d.T, "code"))}})
	}
	if d.chance("wait failed", 10) {
		d.say("runner", n, &executionv1.WaitFailed{Cause: "no child processes"})
	}
	if d.chance("sealed", 80) {
		d.say("runner", n, seal)
		d.say("recorder", n, &executionv1.OutputRecorded{Artifacts: []*executionv1.Artifact{
			{Stream: 1, Uri: "file:///a", SizeBytes: 3, DigestCheck: executionv1.DigestCheck(rapid.IntRange(0, 3).Draw(d.T, "check"))}, {Stream: 1, Uri: "file:///b"},
		}})
	}
	if d.chance("late", 25) {
		d.late(n, streams)
	}
	if d.chance("sealed twice", 5) {
		d.say("runner", n, &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{{Stream: 1, CapturedBytes: 1, Lost: []*executionv1.ByteRange{{End: 1}}}, {Stream: 2}}})
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(d.T, "losses") {
		d.say("watchdog", n, &executionv1.RunnerLost{
			Runner: "r", SilentSince: timestamppb.New(testTime), LastSequence: uint64(rapid.IntRange(0, 12).Draw(d.T, "last")),
		})
		if d.chance("returned", 40) {
			d.say("watchdog", n, &executionv1.RunnerReturned{Runner: "r"})
		}
	}
	if d.chance("retry scheduled", 15) {
		d.say("watchdog", n, &executionv1.RetryScheduled{NextAttempt: n + 1, NotBefore: timestamppb.New(testTime), Because: 1})
	}
}

// drawnStream is a stream with a seal that is true of its chunks.
type drawnStream struct {
	seal                *executionv1.StreamSeal
	published, captured hash.Hash
	// digest: the seal has that of the published bytes.
	digest bool
}

func (d *drawer) newStream(s executionv1.Stream) *drawnStream {
	return &drawnStream{&executionv1.StreamSeal{Stream: s}, sha256.New(), sha256.New(), d.chance("published digest", 80)}
}

func sealOf(streams []*drawnStream) *executionv1.OutputSealed {
	seal := &executionv1.OutputSealed{}
	for _, s := range streams {
		seal.Streams = append(seal.Streams, proto.Clone(s.seal).(*executionv1.StreamSeal))
	}
	return seal
}

// late lets bytes come after the seal of streams that were held, and seals them once more.
func (d *drawer) late(n uint32, streams []*drawnStream) {
	for _, s := range streams {
		if s.seal.GetPipeStillHeld() {
			d.chunks(n, s)
			s.seal.PipeStillHeld = d.chance("held for ever", 30)
		}
	}
	d.say("runner", n, sealOf(streams))
}

// stream draws chunks of a stream.
func (d *drawer) stream(n uint32, s *drawnStream) {
	d.chunks(n, s)
	s.seal.PipeStillHeld = d.chance("held", 25)
	if d.chance("bytes after the seal", 5) {
		d.say("runner", n, &executionv1.OutputChunk{Stream: s.seal.Stream, Offset: s.seal.CapturedBytes, Data: content(s.seal.CapturedBytes, 10)})
	}
	if d.chance("stream not known here", 5) {
		d.say("runner", n, &executionv1.OutputChunk{Stream: 9, Data: content(0, 10)})
	}
}

func (d *drawer) chunks(n uint32, s *drawnStream) {
	seal, published, captured := s.seal, s.published, s.captured
	at := seal.CapturedBytes
	content := content
	if d.chance("valid text", 50) {
		content = letters
	}
	for range rapid.IntRange(0, 8).Draw(d.T, "chunks") {
		size := rapid.SampledFrom([]int{1, 3, 100, 5000, 70000}).Draw(d.T, "size")
		data := content(at, size)
		captured.Write(data)
		end := at + uint64(size)
		if d.chance("elided", 10) {
			seal.Elided = append(seal.Elided, &executionv1.ByteRange{Start: at, End: end})
			at = end
			continue
		}
		published.Write(data)
		seal.PublishedBytes += uint64(size)
		d.say("runner", n, &executionv1.OutputChunk{Stream: seal.Stream, Offset: at, Data: data})
		if d.chance("overlap", 10) {
			back := min(at, uint64(rapid.IntRange(0, 6000).Draw(d.T, "back")))
			again := content(at-back, size)
			if d.chance("other bytes", 50) {
				again[len(again)/2] ^= 0x55
			}
			d.say("runner", n, &executionv1.OutputChunk{Stream: seal.Stream, Offset: at - back, Data: again})
		}
		at = end
	}
	seal.CapturedBytes = at
	seal.Sha256 = captured.Sum(nil)
	if s.digest {
		seal.PublishedSha256 = published.Sum(nil)
	}
}

// content is bytes that follow from their position, with characters of one to four bytes and wrong ones.
func content(offset uint64, size int) []byte {
	const text = "line\nzwölf €uro 𝄞\xff\x00 \xe2\x82\n"
	b := make([]byte, size)
	for i := range b {
		b[i] = text[(offset+uint64(i))%uint64(len(text))]
	}
	return b
}

// letters is like content, of one byte each.
func letters(offset uint64, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = 'a' + byte((offset+uint64(i))%23)
	}
	return b
}

func fold(t *rapid.T, ds []delivery, splits bool) *State {
	s := New(testID)
	for _, d := range ds {
		s.Apply(d.event, d.received)
		if splits && rapid.IntRange(0, 9).Draw(t, "stored here") == 0 {
			s = reload(t, s)
		}
	}
	return s
}

func reload(t interface{ Fatal(...any) }, s *State) *State {
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loaded.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(b, again) {
		t.Fatal("a state that was stored and loaded is stored differently")
	}
	row := s.Row()
	if b, err = s.MarshalBeside(&row); err != nil {
		t.Fatal(err)
	}
	if loaded, err = LoadBeside(b, row.Stdout, row.Stderr); err != nil {
		t.Fatal(err)
	}
	if b, err = loaded.MarshalBinary(); err != nil || !slices.Equal(b, again) {
		t.Fatal("a state that was stored beside its row is loaded differently: ", err)
	}
	return loaded
}

// A state beside its row has none of the bytes that the row shows, and is not taken with another row.
func TestStateBesideItsRow(t *testing.T) {
	t.Parallel()
	told, s := tell(t), New(testID)
	for i := range 100 {
		told.in(1, out(i*4096, strings.Repeat("wölf €ur𝄞\n", 4096/16)))
	}
	for _, e := range told.all {
		s.Apply(e, testTime)
	}
	row := s.Row()
	b, err := s.MarshalBeside(&row)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 2000 {
		t.Errorf("the state has %d bytes beside a row of %d", len(b), len(*row.Stdout))
	}
	changed := strings.Replace(*row.Stdout, "wölf", "wolf!", 1)
	short := (*row.Stdout)[:100]
	for name, other := range map[string]*string{"none": nil, "changed": &changed, "short": &short} {
		if _, err := LoadBeside(b, other, row.Stderr); !errors.Is(err, ErrState) {
			t.Errorf("with %s: %v", name, err)
		}
	}
	if _, err := Load(b); !errors.Is(err, ErrState) {
		t.Errorf("without a row: %v", err)
	}
}

func rowJSON(t interface{ Fatal(...any) }, r Row) string {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Design 4.6: any order, any duplication, any batching of the same facts gives the same row, byte for byte.
func TestFoldIsAJoin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ds := story(t)
		want := fold(t, ds, false)

		again := slices.Clone(ds)
		for range rapid.IntRange(0, 5).Draw(t, "duplicates") {
			if len(ds) > 0 {
				again = append(again, rapid.SampledFrom(ds).Draw(t, "duplicate"))
			}
		}
		again = rapid.Permutation(again).Draw(t, "order")
		got := fold(t, again, true)

		if diff := cmp.Diff(rowJSON(t, want.Row()), rowJSON(t, got.Row())); diff != "" {
			t.Fatalf("the row depends on order, duplication or storing:\n%s", diff)
		}
		if want.Version() != got.Version() {
			t.Fatalf("the version depends on order: %d and %d", want.Version(), got.Version())
		}
	})
}

// The version grows with every fact that is new, and with nothing else.
func TestVersionCountsDistinctFacts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ds := story(t)
		s := New(testID)
		seen := map[[2]string]bool{}
		for _, d := range append(slices.Clone(ds), ds...) {
			key := [2]string{d.event.Source, d.event.ID}
			before := s.Version()
			changed := s.Apply(d.event, d.received)
			if grew := s.Version() - before; grew > 1 || (grew == 1) == seen[key] {
				t.Fatalf("fact %v: met before is %v, the version grew by %d", key, seen[key], grew)
			}
			if !changed && !seen[key] {
				t.Fatalf("fact %v: it is new and changes nothing", key)
			}
			seen[key] = true
		}
		total := uint64(0)
		for _, n := range s.Row().Facts {
			total += n
		}
		if total != s.Version() {
			t.Fatalf("facts add up to %d, the version is %d", total, s.Version())
		}
	})
}

// What a row says of completeness must be true of the facts it was made from.
func TestCompleteIsNeverClaimedWithoutTheBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := fold(t, story(t), false)
		r := s.Row()
		if r.Complete == nil || !*r.Complete {
			return
		}
		if len(r.Missing) > 0 || !r.Sealed {
			t.Fatalf("complete, but missing %v, sealed %v", r.Missing, r.Sealed)
		}
		for _, c := range r.Contradictions {
			// Contradictions of earlier attempts are listed too, and say nothing about this one.
			if strings.Contains(c, "different bytes") && strings.HasPrefix(c, fmt.Sprintf("attempt %d:", *r.Attempt)) {
				t.Fatalf("complete, but %s", c)
			}
		}
	})
}

// A seal that comes after bytes that were late makes the earlier one worthless: without it the row is the same, whichever came first.
func TestLaterSealTakesTheEarlierOnesPlace(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := &drawer{T: t, next: map[string]uint64{}, whole: true}
		streams := []*drawnStream{d.newStream(1), d.newStream(2)}
		for _, s := range streams {
			d.chunks(1, s)
			s.seal.PipeStillHeld = rapid.Bool().Draw(t, "held")
		}
		first := sealOf(streams)
		d.late(1, streams)
		without := fold(t, rapid.Permutation(d.out).Draw(t, "order"), true).Row()
		d.say("elsewhere", 1, first)
		with := fold(t, rapid.Permutation(d.out).Draw(t, "other order"), true).Row()
		with.Facts, without.Facts, with.Version, without.Version = nil, nil, 0, 0
		if diff := cmp.Diff(rowJSON(t, without), rowJSON(t, with)); diff != "" {
			t.Fatalf("the earlier seal changes the row:\n%s", diff)
		}
	})
}
