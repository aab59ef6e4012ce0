package execution

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestSeen(t *testing.T) {
	t.Parallel()
	base := events.Event{Subject: testID, Source: "/a", Attempt: 2, Sequence: 3, ID: events.ID(testID, 2, "runner", 3)}
	with := func(change func(e *events.Event)) events.Event {
		e := base
		change(&e)
		return e
	}
	others := []events.Event{
		base,
		with(func(e *events.Event) { e.Source = "/b" }),
		with(func(e *events.Event) { e.ID = events.ID(testID, 2, "preparer", 3) }),
		with(func(e *events.Event) { e.ID = "foreign" }),
		with(func(e *events.Event) { e.ID, e.Source = "foreign", "/b" }),
		with(func(e *events.Event) { e.ID = events.ID(testID, 2, "runner", 4) }), // says another sequence
		with(func(e *events.Event) { e.ID = events.ID(testID, 1, "runner", 3) }), // says another attempt
		with(func(e *events.Event) { e.ID = events.ID(testID, 2, "", 3) }),
		with(func(e *events.Event) { e.ID = testID + "/02/runner/3" }),
		with(func(e *events.Event) { e.ID = testID + "/2/runner/03" }),
		with(func(e *events.Event) { e.ID = testID + "/2/3" }),
		with(func(e *events.Event) { e.ID = testID }),
		with(func(e *events.Event) { e.ID = "" }),
		with(func(e *events.Event) {
			e.Sequence, e.ID = math.MaxUint64, events.ID(testID, 2, "runner", math.MaxUint64)
		}),
		with(func(e *events.Event) { e.Sequence, e.ID = 0, events.ID(testID, 2, "runner", 0) }),
	}
	var s Seen
	for round := range 2 {
		for i, e := range others {
			added, sure := s.Add(e)
			if added != (round == 0) || !sure {
				t.Errorf("round %d, event %d %q: added %v, sure %v", round, i, e.ID, added, sure)
			}
		}
	}
	if s.Len() != uint64(len(others)) {
		t.Fatalf("%d were met, want %d", s.Len(), len(others))
	}
}

// Ten thousand ids of a foreign form: memory stays bounded, the row says so, and is the same in any order.
func TestManyForeignIDs(t *testing.T) {
	t.Parallel()
	var all []events.Event
	for i := range 10_000 {
		e := tell(t).in(1, out(0, "x")).all[0]
		e.ID = fmt.Sprint("build-", i)
		all = append(all, e)
	}
	want := Fold(testID, all)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	got := Fold(testID, all)
	if got.Version < maxForeign || want.Version < maxForeign {
		t.Fatal(got.Version, want.Version)
	}
	got.Version = want.Version // Beyond the limit it counts changes, and how many there are depends on the order.
	if diff := cmp.Diff(rowJSON(t, want), rowJSON(t, got)); diff != "" {
		t.Fatal(diff)
	}
	if len(got.Contradictions) != 1 || got.Complete != nil {
		t.Fatal(rowJSON(t, got))
	}
}

// Producers, holes, attempts and types without end: bounded, flagged, nothing panics.
func TestLimits(t *testing.T) {
	t.Parallel()
	cases := map[string]func(i int) (attempt uint32, data proto.Message, change func(e *events.Event)){
		"producers": func(i int) (uint32, proto.Message, func(*events.Event)) {
			return 1, out(0, "x"), func(e *events.Event) { e.Source = fmt.Sprint("/p", i) }
		},
		"holes in a stream": func(i int) (uint32, proto.Message, func(*events.Event)) { return 1, out(2*i, "x"), nil },
		"holes in a sequence": func(i int) (uint32, proto.Message, func(*events.Event)) {
			return 1, out(0, "x"), func(e *events.Event) { e.Sequence *= 2; e.ID = events.ID(testID, 1, "runner", e.Sequence) }
		},
	}
	for name, make := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, told := New(testID), tell(t)
			for i := range maxRanges + 1000 {
				attempt, data, change := make(i)
				told.in(attempt, data)
				e := told.all[i]
				if change != nil {
					change(&e)
				}
				s.Apply(e, time.Time{})
			}
			r := reload(t, s).Row()
			if len(r.Contradictions) == 0 || !strings.Contains(r.Contradictions[len(r.Contradictions)-1], "lower bounds") {
				t.Fatalf("the limit is not mentioned: %v", r.Contradictions)
			}
		})
	}
	t.Run("attempts", func(t *testing.T) {
		t.Parallel()
		s, told := New(testID), tell(t)
		for i := range uint32(1000) {
			told.in(i*7919%1000+1, out(0, "x"))
		}
		for _, e := range told.all {
			s.Apply(e, time.Time{})
		}
		if r := reload(t, s).Row(); *r.Attempt != 1000 || r.Attempts != 1000 || len(s.attempts) != keptAttempts || r.Version != 1000 {
			t.Fatal(rowJSON(t, r))
		}
	})
	t.Run("types", func(t *testing.T) {
		t.Parallel()
		told := tell(t)
		for i := range 1000 {
			told.in(1, out(0, "x"))
			told.all[i].Type, told.all[i].Data = fmt.Sprint("com.example.", i), nil
		}
		r := Fold(testID, told.all)
		slices.Reverse(told.all)
		if diff := cmp.Diff(rowJSON(t, r), rowJSON(t, Fold(testID, told.all))); diff != "" {
			t.Fatal(diff)
		}
		if len(r.Facts) != maxUnknownTypes || r.UnknownFacts != 1000 || r.Version != 1000 || r.Attempt != nil {
			t.Fatal(rowJSON(t, r))
		}
	})
}

// Payloads that no codec would let through.
func TestHostilePayloads(t *testing.T) {
	t.Parallel()
	never := &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -1}
	far := timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
	s := New(testID)
	for i, d := range []proto.Message{
		nil, (*executionv1.OutputChunk)(nil), (*executionv1.ProcessExited)(nil), (*executionv1.OutputSealed)(nil), (*executionv1.Prepared)(nil),
		&executionv1.OutputChunk{Stream: 1, Offset: math.MaxUint64, Data: []byte("xyz")},
		&executionv1.OutputChunk{Stream: 1, Offset: math.MaxUint64 - 1, Data: []byte("x")},
		&executionv1.OutputChunk{Stream: 77, Data: []byte("x")}, &executionv1.OutputReadFailed{Stream: 77},
		&executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{nil, {Stream: 1, CapturedBytes: math.MaxUint64, Sha256: []byte{1}, PublishedSha256: []byte{2}, Elided: []*executionv1.ByteRange{nil, {Start: 9, End: 3}, {End: math.MaxUint64}}, Lost: []*executionv1.ByteRange{{Start: 5, End: 7}}}, {Stream: 1}}},
		&executionv1.ProcessExited{Status: &executionv1.ProcessExited_Signal{}, EndedAt: never, Usage: &executionv1.ResourceUsage{UserTime: &durationpb.Duration{Seconds: math.MaxInt64, Nanos: math.MinInt32}}},
		&executionv1.ProcessStarted{ProcessStartedAt: far}, &executionv1.WaitFailed{FailedAt: far, Cause: strings.Repeat("ü", 9999)},
		&executionv1.TerminationStarted{Cause: -5, Signals: []*executionv1.SentSignal{nil, {SentAt: never}}},
		&executionv1.RunnerHeartbeat{}, &executionv1.CordonRequested{}, &timestamppb.Timestamp{},
		&executionv1.ExecutionRequested{Timeout: &durationpb.Duration{Seconds: math.MinInt64}}, &executionv1.RunnerLost{SilentSince: never},
	} {
		for _, attempt := range []uint32{0, 1, math.MaxUint32} {
			e := events.Event{ID: fmt.Sprint(i, attempt), Source: "\xff", Type: "\xff", Subject: testID, Attempt: attempt, Sequence: uint64(i), Data: d, Time: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)}
			s.Apply(e, time.Time{})
			rowJSON(t, reload(t, s).Row())
		}
	}
	other := tell(t).in(1, exit(0)).all[0]
	other.Subject = "another"
	if before := s.Version(); s.Apply(other, time.Time{}) || s.Version() != before {
		t.Fatal("a fact of another execution was folded")
	}
}

// A state that was cut, changed or made up is refused.
func TestLoadRefusesDamage(t *testing.T) {
	t.Parallel()
	good := stored(t)
	for cut := range len(good) {
		if _, err := Load(good[:cut]); !errors.Is(err, ErrState) {
			t.Fatalf("%d of %d bytes: %v", cut, len(good), err)
		}
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x40
		if _, err := Load(bad); !errors.Is(err, ErrState) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := Load(appendChecksum([]byte{formatVersion + 1})); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Fatalf("a form from the future: %v", err)
	}
	body, err := checked(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Load(appendChecksum(append(slices.Clone(body), 0))); !errors.Is(err, ErrState) {
		t.Fatalf("a byte too many: %v", err)
	}
}

// stored is a state with every kind of fact.
func stored(t testing.TB) []byte {
	s := New(eventstest.ExecutionID)
	for _, e := range eventstest.Undeleted() {
		s.Apply(e, eventstest.Time)
	}
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzLoad: any bytes, also with a right checksum, give a state that works or an error.
func FuzzLoad(f *testing.F) {
	body, err := checked(stored(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{formatVersion, 0})
	samples := eventstest.Undeleted()
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := Load(appendChecksum(slices.Clone(body)))
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range samples {
			e.Subject = s.ID()
			s.Apply(e, eventstest.Time)
		}
		rowJSON(t, reload(t, s).Row())
	})
}

// FuzzLoadBeside is the same for a state that names bytes of its row.
func FuzzLoadBeside(f *testing.F) {
	s, told := New(testID), tell(f)
	told.in(1, out(0, strings.Repeat("0123456789abcdef", 4096)))
	told.in(1, out(headBytes, "more\n"))
	for _, e := range told.all {
		s.Apply(e, testTime)
	}
	row := s.Row()
	b, err := s.MarshalBeside(&row)
	if err != nil {
		f.Fatal(err)
	}
	body, err := checked(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body, *row.Stdout, "")
	f.Add(body, "0123", "more")
	f.Fuzz(func(t *testing.T, body []byte, stdout, stderr string) {
		s, err := LoadBeside(appendChecksum(slices.Clone(body)), &stdout, &stderr)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
			return
		}
		rowJSON(t, reload(t, s).Row())
	})
}

// FuzzFold: facts decoded from any bytes are folded without a panic, and storing between them changes nothing.
func FuzzFold(f *testing.F) {
	for i, e := range eventstest.Samples() {
		f.Add(uint8(i), uint8(1), e.Payload, uint8(2), uint8(1), e.Payload)
	}
	types := events.Types()
	f.Fuzz(func(t *testing.T, typeA, attemptA uint8, payloadA []byte, typeB, attemptB uint8, payloadB []byte) {
		var all []events.Event
		for i, in := range []struct {
			typ, attempt uint8
			payload      []byte
		}{{typeA, attemptA, payloadA}, {typeB, attemptB, payloadB}} {
			typ := types[int(in.typ)%len(types)]
			data, _ := events.NewPayload(typ)
			if proto.Unmarshal(in.payload, data) != nil {
				return
			}
			all = append(all, events.Event{ID: events.ID(testID, uint32(in.attempt), "p", uint64(i+1)), Source: "/p", Type: typ, Subject: testID, Attempt: uint32(in.attempt), Sequence: uint64(i + 1), Data: data})
		}
		forth, back := New(testID), New(testID)
		forth.Apply(all[0], testTime)
		forth = reload(t, forth)
		forth.Apply(all[1], testTime)
		back.Apply(all[1], testTime)
		back.Apply(all[0], testTime)
		if diff := cmp.Diff(rowJSON(t, forth.Row()), rowJSON(t, back.Row())); diff != "" {
			t.Fatal(diff)
		}
	})
}

// BenchmarkFold folds one execution's small chunks in order.
func BenchmarkFold(b *testing.B) {
	for _, size := range []int{16, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			const count = 20_000 // more than the windows keep
			told := tell(b)
			for i := range count {
				told.in(1, out(i*size, strings.Repeat("x", size)))
			}
			b.SetBytes(int64(size * count))
			b.ReportAllocs()
			for b.Loop() {
				s := New(testID)
				for _, e := range told.all {
					s.Apply(e, testTime)
				}
			}
			b.ReportMetric(float64(b.N*count)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkRow works out the row of a stream that fills both windows.
func BenchmarkRow(b *testing.B) {
	s, told := New(testID), tell(b)
	for i := range 100 {
		told.in(1, out(i*4096, strings.Repeat("0123456789abcde\n", 256)))
		s.Apply(told.all[i], testTime)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Row()
	}
}
