package tail_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/tail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is one partition of a log, and the archive of what the test says was archived of it.
type memory struct {
	mu       sync.Mutex
	start    int64
	records  []tail.Record
	grown    chan struct{}
	archived map[int64]bool
	stored   int64
	known    bool
	// fail makes everything that asks the log fail; broken counts down records until a reader breaks.
	fail     error
	breakAll bool
	// archiveFail makes the archive fail after that many facts; -1 never.
	archiveFail int
	opened      int
	open        int
	hubs        int // That are not stopped yet.
}

func newMemory() *memory {
	return &memory{grown: make(chan struct{}), archived: map[int64]bool{}, archiveFail: -1}
}

func (m *memory) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	close(m.grown)
	m.grown = make(chan struct{})
}

func (m *memory) append(records ...tail.Record) {
	m.set(func() {
		for _, r := range records {
			r.Offset = m.start + int64(len(m.records))
			m.records = append(m.records, r)
		}
	})
}

// archive stores everything below an offset and commits it.
func (m *memory) archive(below int64) {
	m.set(func() {
		for o := range below {
			m.archived[o] = true
		}
		m.stored, m.known = below, true
	})
}

func (m *memory) EndOffset(context.Context, int) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.start + int64(len(m.records)), m.fail
}

func (m *memory) OffsetAt(_ context.Context, _ int, t time.Time) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		if !r.Time.Before(t) {
			return r.Offset, m.fail
		}
	}
	return m.start + int64(len(m.records)), m.fail
}

func (m *memory) Read(_ int, from int64) (tail.Reader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	m.opened++
	m.open++
	return &memoryReader{m: m, next: from}, nil
}

type memoryReader struct {
	m    *memory
	next int64
}

func (r *memoryReader) Next(ctx context.Context) (tail.Record, error) {
	for {
		r.m.mu.Lock()
		i, grown := r.next-r.m.start, r.m.grown
		switch {
		case r.m.fail != nil || r.m.breakAll:
			r.m.mu.Unlock()
			return tail.Record{}, errors.New("connection reset")
		case i < 0:
			r.m.mu.Unlock()
			return tail.Record{}, tail.ErrOffsetGone
		case i < int64(len(r.m.records)):
			record := r.m.records[i]
			r.m.mu.Unlock()
			r.next++
			return record, nil
		}
		r.m.mu.Unlock()
		select {
		case <-ctx.Done():
			return tail.Record{}, ctx.Err()
		case <-grown:
		}
	}
}

func (r *memoryReader) Close() error {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.open--
	return nil
}

func (m *memory) Stored(context.Context, int) (int64, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored, m.known, nil
}

func (m *memory) Facts(_ context.Context, id string, after int64) iter.Seq2[tail.Fact, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var facts []tail.Fact
	for _, r := range m.records {
		e, err := codec.Decode(r.Headers, r.Value)
		if err == nil && e.Subject == id && r.Offset > after && m.archived[r.Offset] {
			facts = append(facts, tail.Fact{Event: e, Offset: r.Offset, ReceivedAt: r.Time})
		}
	}
	fail := m.archiveFail
	return func(yield func(tail.Fact, error) bool) {
		for i, f := range facts {
			if i == fail {
				yield(tail.Fact{}, errors.New("the database closed the connection"))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

func (m *memory) hub(t *testing.T, change ...func(*tail.Config)) *tail.Hub {
	t.Helper()
	c := tail.Config{Log: m, Archive: m, Partition: func(string) int { return 0 }, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&c)
	}
	h := tail.NewHub(c)
	m.hubs++
	t.Cleanup(func() {
		h.Stop()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.hubs--; m.hubs == 0 && m.open != 0 {
			t.Errorf("%d readers are left open", m.open)
		}
	})
	return h
}

// story makes one execution's records.
type story struct {
	t        *testing.T
	id       string
	sequence uint64
	attempt  uint32
}

func newStory(t *testing.T) *story {
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	return &story{t: t, id: id, attempt: 1}
}

func (s *story) record(data proto.Message) tail.Record {
	s.sequence++
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(s.id, s.attempt, s.sequence, time.Now(), data)
	if err != nil {
		s.t.Fatal(err)
	}
	headers, value, err := codec.Encode(e)
	if err != nil {
		s.t.Fatal(err)
	}
	return tail.Record{Key: []byte(s.id), Headers: headers, Value: value, Time: time.Now()}
}

func (s *story) chunk() tail.Record {
	return s.record(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: s.sequence, Data: []byte("x")})
}

func (s *story) seal() tail.Record { return s.record(&executionv1.OutputSealed{}) }

// sealedLate is what a recorder says after the seal.
func (s *story) sealedLate() proto.Message { return &executionv1.OutputRecorded{} }

func (s *story) chunks(n int) []tail.Record {
	out := make([]tail.Record, n)
	for i := range out {
		out[i] = s.chunk()
	}
	return out
}

// sequences drains a tail. It fails the test when a fact is another execution's or out of order.
func sequences(t *testing.T, id string, facts iter.Seq2[tail.Fact, error], each ...func()) ([]uint64, error) {
	t.Helper()
	var out []uint64
	last := int64(-1)
	for f, err := range facts {
		if err != nil {
			return out, err
		}
		if f.Event.Subject != id || f.Offset <= last {
			t.Errorf("fact %s at offset %d after offset %d", f.Event.ID, f.Offset, last)
		}
		last = f.Offset
		out = append(out, f.Event.Sequence)
		for _, do := range each {
			do()
		}
	}
	return out, nil
}

func upTo(from, n uint64) []uint64 {
	var out []uint64
	for i := from; i <= n; i++ {
		out = append(out, i)
	}
	return out
}

func want(t *testing.T, got []uint64, err error, from, to uint64) {
	t.Helper()
	if err != nil || !slices.Equal(got, upTo(from, to)) {
		t.Errorf("got %s and error %v, want %d to %d", brief(got), err, from, to)
	}
}

func brief(s []uint64) string {
	if len(s) > 20 {
		return fmt.Sprintf("%v … %v (%d)", s[:10], s[len(s)-10:], len(s))
	}
	return fmt.Sprint(s)
}
