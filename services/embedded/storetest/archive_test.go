package storetest

import (
	"bytes"
	"crypto/rand"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"verbatim.dev/events"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var out []T
	for v, err := range seq {
		must(t, err)
		out = append(out, v)
	}
	return out
}

// Every event comes back as it was archived: attributes, headers, payload bytes, decoded payload.
func TestEventsRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t)
	var want []clickhouse.ArchivedEvent
	for i, e := range eventstest.Samples() {
		if events.AboutRunner(e.Type) || e.Type == events.TypeStdinPart {
			continue // They are in topics of their own, and not archived.
		}
		if i%3 == 0 { // some say no time, some are JSON
			e.Time = time.Time{}
			payload, err := protojson.Marshal(e.Data)
			must(t, err)
			e.Payload, e.ContentType = payload, events.ContentTypeJSON
		}
		want = append(want, clickhouse.ArchivedEvent{
			Event: e, Topic: events.TopicExecutions, Partition: 11, Offset: int64(100 + i),
			ReceivedAt: testTime, Headers: [][2]string{{"ce_id", e.ID}, {"ce_id", "again"}, {"binary", "\xff\x00"}},
		})
	}
	unknown := events.Event{
		ID: "foreign", Source: "/elsewhere", Type: "com.example.Unknown.v9", Subject: eventstest.ExecutionID, Attempt: 4000000000,
		Sequence: 1<<64 - 1, ContentType: "text/plain", Payload: eventstest.Binary,
	}
	want = append(want, clickhouse.ArchivedEvent{Event: unknown, Topic: events.TopicExecutions, Offset: 1 << 40, ReceivedAt: testTime})
	must(t, s.InsertEvents(t.Context(), want))

	got := collect(t, s.Events(t.Context(), eventstest.ExecutionID, -1))
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

// The request comes first although its offset is larger; facts come by offset; copies come once, with the smallest offset.
func TestEventsOrder(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	for i := range 500 {
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, uint64(i), []byte{byte(i)})
	}
	gateway := factsOf(t, f.id)
	gateway.producer = events.Producer{Name: "gateway", Source: "/verbatim/gateway"}
	request := gateway.say(0, &executionv1.ExecutionRequested{})
	request.Topic, request.Offset = events.TopicRequests, 1<<50
	other := factsOf(t, idAt(testTime, 2))
	other.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("of another execution"))

	resent := make([]clickhouse.ArchivedEvent, 0, 100)
	for _, a := range f.all[200:300] {
		a.Offset += 10_000
		resent = append(resent, a)
	}
	for _, batch := range [][]clickhouse.ArchivedEvent{f.all[400:], resent, f.all[:400], {request}, f.all, other.all, resent} {
		must(t, s.InsertEvents(t.Context(), batch))
	}

	offsets := func(as []clickhouse.ArchivedEvent) []int64 {
		var out []int64
		for _, a := range as {
			out = append(out, a.Offset)
		}
		return out
	}
	if diff := cmp.Diff(append([]int64{1 << 50}, offsets(f.all)...), offsets(collect(t, s.Events(t.Context(), f.id, -1)))); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff(offsets(f.all[451:]), offsets(slices.DeleteFunc(collect(t, s.Events(t.Context(), f.id, 450)), func(a clickhouse.ArchivedEvent) bool { return a.Offset >= 10_000 }))); diff != "" {
		t.Fatalf("after offset 450: %s", diff)
	}
}

// When ClickHouse merges copies, the one that came first stays: a cursor that was given out stays true.
func TestMergeKeepsTheFirstCopy(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	f := factsOf(t, idAt(testTime, 1))
	a := f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("x"))
	for _, offset := range []int64{70, 7, 700} {
		a.Offset = offset
		must(t, s.InsertEvents(t.Context(), []clickhouse.ArchivedEvent{a}))
	}
	exec(t, dsn, "OPTIMIZE TABLE events FINAL")
	got := collect(t, s.Events(t.Context(), f.id, -1))
	if len(got) != 1 || got[0].Offset != 7 {
		t.Fatalf("after the merge there are %d copies, want that of offset 7: %+v", len(got), got)
	}
}

// A reader that stops early stops the query, and the store goes on working.
func TestEventsStopEarly(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	for i := range 40 { // more than one page
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, uint64(i)<<18, make([]byte, 1<<18))
	}
	must(t, s.InsertEvents(t.Context(), f.all))
	for range 20 { // more often than there are connections
		for a, err := range s.Events(t.Context(), f.id, -1) {
			must(t, err)
			if a.Offset == 1 {
				break
			}
		}
		for c, err := range s.Output(t.Context(), f.id, 1, "stdout", 0, 0) {
			must(t, err)
			if c.Offset > 0 {
				break
			}
		}
	}
}

// 50,000 events with arbitrary bytes, many executions, in one batch.
func TestInsertManyEvents(t *testing.T) {
	t.Parallel()
	s := open(t)
	const executions, each = 50, 1000
	var all []clickhouse.ArchivedEvent
	var whole [executions][]byte
	for n := range executions {
		f := factsOf(t, idAt(testTime, n))
		for range each {
			data := make([]byte, 40)
			_, _ = rand.Read(data)
			f.chunk(1, executionv1.Stream_STREAM_STDERR, uint64(len(whole[n])), data)
			whole[n] = append(whole[n], data...)
		}
		all = append(all, f.all...)
	}
	started := time.Now()
	must(t, s.InsertEvents(t.Context(), all))
	t.Logf("%d events inserted in %v", len(all), time.Since(started))
	for n := range executions {
		if got := output(t, s, idAt(testTime, n), 1, "stderr", 0, 0); !bytes.Equal(got, whole[n]) {
			t.Fatalf("execution %d: %d bytes came back, want %d equal ones", n, len(got), len(whole[n]))
		}
	}
}

// Ids that name many days must not make a batch fail.
func TestInsertManyDays(t *testing.T) {
	t.Parallel()
	s := open(t)
	var all []clickhouse.ArchivedEvent
	for n := range 130 {
		f := factsOf(t, idAt(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, n*8, n), n))
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte(f.id))
		all = append(all, f.all...)
	}
	must(t, s.InsertEvents(t.Context(), all))
	for n := 0; n < len(all); n += 10 {
		a := all[n]
		if got := output(t, s, a.Event.Subject, 0, "stdout", 0, 0); string(got) != a.Event.Subject {
			t.Fatalf("execution %s: output is %q", a.Event.Subject, got)
		}
	}
}

// A record's time is what its producer made it. None may hold up a batch.
func TestHostileRecordTimes(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	for i, at := range []time.Time{{}, time.UnixMilli(-1), time.UnixMilli(1<<63 - 1), time.UnixMilli(-1 << 63), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), testTime} {
		f.chunk(1, executionv1.Stream_STREAM_STDOUT, uint64(i), []byte("x"))
		f.all[i].ReceivedAt = at
	}
	must(t, s.InsertEvents(t.Context(), f.all))
	got := collect(t, s.Events(t.Context(), f.id, -1))
	if len(got) != len(f.all) || !got[0].ReceivedAt.Equal(time.Unix(0, 0)) || !got[5].ReceivedAt.Equal(testTime) {
		t.Fatalf("%d events: %+v", len(got), got)
	}
}

func TestInsertRefusesWhatHasNoPlace(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	good := f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("x"))
	bad := good
	bad.Event.Subject = "r1"
	if err := s.InsertEvents(t.Context(), []clickhouse.ArchivedEvent{good, bad}); err == nil {
		t.Fatal("an event of no execution was archived")
	}
	if got := collect(t, s.Events(t.Context(), f.id, -1)); len(got) != 0 {
		t.Fatalf("half a batch was archived: %d events", len(got))
	}
	must(t, s.InsertEvents(t.Context(), nil))
}

// output reads a range and checks that no byte comes twice and none out of order; a gap is shown as one "·".
func output(t *testing.T, s *clickhouse.Store, id string, attempt uint32, stream string, from, to uint64) []byte {
	t.Helper()
	var out []byte
	at := from
	for c, err := range s.Output(t.Context(), id, attempt, stream, from, to) {
		must(t, err)
		switch {
		case c.Offset < at:
			t.Fatalf("chunk at %d, everything up to %d was there already", c.Offset, at)
		case c.Offset > at:
			out = append(out, "·"...)
		case len(c.Data) == 0:
			t.Fatalf("empty chunk at %d", c.Offset)
		}
		out = append(out, c.Data...)
		at = c.Offset + uint64(len(c.Data))
	}
	if to > from && at > to {
		t.Fatalf("bytes up to %d, only those up to %d were asked for", at, to)
	}
	return out
}

func TestOutputRanges(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	const out, errs = executionv1.Stream_STREAM_STDOUT, executionv1.Stream_STREAM_STDERR
	f.chunk(1, out, 0, []byte("first attempt"))
	f.chunk(2, out, 10, []byte("klmno")) // late
	f.chunk(2, out, 0, []byte("abcde"))
	f.chunk(2, out, 3, []byte("defgh")) // overlaps
	f.chunk(2, out, 4, []byte("ef"))    // lies within
	f.chunk(2, out, 20, []byte("uvw"))  // 8, 9 and 15 to 19 are not there
	f.chunk(2, out, 0, []byte("ab"))    // same offset, shorter
	f.chunk(2, errs, 0, []byte("on the other stream"))
	must(t, s.InsertEvents(t.Context(), f.all))
	must(t, s.InsertEvents(t.Context(), f.all))

	cases := []struct {
		attempt  uint32
		from, to uint64
		want     string
	}{
		{0, 0, 0, "abcdefgh·klmno·uvw"},
		{2, 0, 0, "abcdefgh·klmno·uvw"},
		{1, 0, 0, "first attempt"},
		{2, 4, 0, "efgh·klmno·uvw"},
		{2, 0, 4, "abcd"},
		{2, 4, 5, "e"},
		{2, 7, 11, "h·k"},
		{2, 8, 9, ""},
		{2, 9, 12, "·kl"},
		{2, 21, 100, "vw"},
		{2, 23, 0, ""},
		{2, 1 << 63, 0, ""},
		{2, 1<<64 - 1, 0, ""},
		{2, 5, 3, ""},
		{3, 0, 0, ""},
	}
	for _, c := range cases {
		if got := output(t, s, f.id, c.attempt, "stdout", c.from, c.to); string(got) != c.want {
			t.Errorf("attempt %d, [%d, %d): %q, want %q", c.attempt, c.from, c.to, got, c.want)
		}
	}
	for stream, want := range map[string]uint64{"stdout": 23, "stderr": 19, "no stream": 0} {
		size, err := s.OutputSize(t.Context(), f.id, 0, stream)
		must(t, err)
		if size != want {
			t.Errorf("size of %s is %d, want %d", stream, size, want)
		}
	}
	if size, err := s.OutputSize(t.Context(), idAt(testTime, 99), 0, "stdout"); err != nil || size != 0 {
		t.Errorf("size of an unknown execution is %d, %v", size, err)
	}
}

// Over many pages, with a gap wider than several pages and chunks across their borders, every byte comes once.
func TestOutputPages(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	var want bytes.Buffer
	add := func(from uint64, total int) {
		for done := 0; done < total; {
			data := make([]byte, min(total-done, 900_001))
			_, _ = rand.Read(data)
			f.chunk(1, executionv1.Stream_STREAM_STDOUT, from+uint64(done), data)
			want.Write(data)
			done += len(data)
		}
	}
	add(0, 20<<20)
	want.WriteString("·")
	add(100<<20+17, 3<<20)
	want.WriteString("·")
	add(1<<45, 9<<20)
	must(t, s.InsertEvents(t.Context(), f.all))
	if got := output(t, s, f.id, 1, "stdout", 0, 0); !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("%d bytes came back, want %d equal ones", len(got), want.Len())
	}
	for _, at := range []uint64{8<<20 - 1, 8 << 20, 8<<20 + 1, 19 << 20} {
		if got := output(t, s, f.id, 1, "stdout", at, at+12345); !bytes.Equal(got, want.Bytes()[at:at+12345]) {
			t.Fatalf("range at %d: %d bytes, not the right ones", at, len(got))
		}
	}
	if got := output(t, s, f.id, 1, "stdout", 30<<20, 90<<20); len(got) > 0 {
		t.Fatalf("%d bytes of a gap", len(got))
	}
}
