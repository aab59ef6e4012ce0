package runner_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

const (
	stdout = executionv1.Stream_STREAM_STDOUT
	stderr = executionv1.Stream_STREAM_STDERR

	// childVariable makes the test binary play a process instead of testing.
	childVariable = "VERBATIM_TEST_CHILD"

	traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	// patience bounds every wait for something that must happen.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childVariable); role != "" {
		os.Exit(playChild(role))
	}
	goleak.VerifyTestMain(m)
}

// log is the runner's Publisher in the tests: it keeps what was published, and fails or waits when told to.
type log struct {
	mu      sync.Mutex
	facts   map[string][]events.Event
	calls   [][]string // The ids of every call, failed ones too.
	before  func(ctx context.Context, ids []string) error
	changed chan struct{}
}

func newLog() *log {
	return &log{facts: make(map[string][]events.Event), changed: make(chan struct{})}
}

func (l *log) PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error {
	if topic != events.TopicExecutions {
		return fmt.Errorf("facts go to %s, not to %s", events.TopicExecutions, topic)
	}
	ids := make([]string, len(msgs))
	for i, m := range msgs {
		ids[i] = m.UUID
	}
	l.mu.Lock()
	l.calls = append(l.calls, ids)
	before := l.before
	l.mu.Unlock()
	if before != nil {
		if err := before(ctx, ids); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range msgs {
		e, err := codec.FromMessage(m)
		if err != nil {
			return err
		}
		l.facts[e.Subject] = append(l.facts[e.Subject], e)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

func (l *log) of(execution string) []events.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.facts[execution])
}

// await waits until a fact about the execution satisfies want, and returns it.
func (l *log) await(t *testing.T, execution string, what string, want func(events.Event) bool) events.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		list, changed := l.facts[execution], l.changed
		l.mu.Unlock()
		if i := slices.IndexFunc(list, want); i >= 0 {
			return list[i]
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("no %s within %s; there is:\n%s", what, patience, describe(list))
		}
	}
}

func (l *log) awaitType(t *testing.T, execution, typ string) events.Event {
	t.Helper()
	return l.await(t, execution, typ, func(e events.Event) bool { return e.Type == typ })
}

// awaitOutput waits until the chunks of a stream hold the text.
func (l *log) awaitOutput(t *testing.T, execution string, stream executionv1.Stream, text string) {
	t.Helper()
	var all bytes.Buffer
	var last uint64
	l.await(t, execution, "output "+text, func(e events.Event) bool {
		if c, ok := e.Data.(*executionv1.OutputChunk); ok && c.GetStream() == stream && e.Sequence > last {
			last = e.Sequence
			all.Write(c.GetData())
		}
		return strings.Contains(all.String(), text)
	})
}

func describe(list []events.Event) string {
	var b strings.Builder
	for _, e := range list {
		text := fmt.Sprint(e.Data)
		fmt.Fprintf(&b, "%4d %s %s\n", e.Sequence, e.Type, text[:min(len(text), 200)])
	}
	return b.String()
}

// story is what the log says of an execution, checked for what must always hold.
type story struct {
	facts  []events.Event
	output map[executionv1.Stream][]byte
	seals  map[executionv1.Stream]*executionv1.StreamSeal
	ends   map[executionv1.Stream]uint64
	gaps   map[executionv1.Stream][]*executionv1.ByteRange
}

// tell waits for the seal and checks the attempt: numbers without holes and in order, offsets without gaps, one
// end, one seal, digests of what was published.
func (l *log) tell(t *testing.T, execution string) story {
	t.Helper()
	l.awaitType(t, execution, events.TypeOutputSealed)
	s := story{
		output: make(map[executionv1.Stream][]byte), seals: make(map[executionv1.Stream]*executionv1.StreamSeal),
		ends: make(map[executionv1.Stream]uint64), gaps: make(map[executionv1.Stream][]*executionv1.ByteRange),
	}
	ends := 0
	for _, e := range l.of(execution) {
		if n := uint64(len(s.facts)); e.Sequence <= n {
			continue // A resend.
		} else if e.Sequence != n+1 {
			t.Fatalf("fact %d comes after %d", e.Sequence, n)
		}
		s.facts = append(s.facts, e)
		if e.Source != "/verbatim/runner/r1" || e.Traceparent != traceparent || e.Attempt != 1 {
			t.Errorf("fact %d: source %q, traceparent %q, attempt %d", e.Sequence, e.Source, e.Traceparent, e.Attempt)
		}
		switch d := e.Data.(type) {
		case *executionv1.OutputChunk:
			if have := s.ends[d.GetStream()]; d.GetOffset() < have {
				t.Fatalf("%s: chunk at offset %d after %d bytes", d.GetStream(), d.GetOffset(), have)
			} else if d.GetOffset() > have {
				s.gaps[d.GetStream()] = append(s.gaps[d.GetStream()], &executionv1.ByteRange{Start: have, End: d.GetOffset()})
			}
			s.output[d.GetStream()] = append(s.output[d.GetStream()], d.GetData()...)
			s.ends[d.GetStream()] = d.GetOffset() + uint64(len(d.GetData()))
		case *executionv1.StartFailed, *executionv1.ProcessExited, *executionv1.WaitFailed:
			ends++
		case *executionv1.OutputSealed:
			for _, seal := range d.GetStreams() {
				s.seals[seal.GetStream()] = seal
			}
		}
	}
	if last := s.facts[len(s.facts)-1]; last.Type != events.TypeOutputSealed || ends != 1 || len(s.seals) != 2 {
		t.Fatalf("%d ends, %d streams sealed, the last fact is %s:\n%s", ends, len(s.seals), last.Type, describe(s.facts))
	}
	for stream, seal := range s.seals {
		digest := sha256.Sum256(s.output[stream])
		if seal.GetPublishedBytes() != uint64(len(s.output[stream])) || !bytes.Equal(seal.GetPublishedSha256(), digest[:]) {
			t.Errorf("%s: the seal says %d bytes with digest %x, the chunks have %d with %x", stream, seal.GetPublishedBytes(), seal.GetPublishedSha256(), len(s.output[stream]), digest)
		}
		if s.ends[stream] < seal.GetCapturedBytes() {
			s.gaps[stream] = append(s.gaps[stream], &executionv1.ByteRange{Start: s.ends[stream], End: seal.GetCapturedBytes()})
		}
		if len(seal.GetLost()) > 0 {
			continue
		}
		if fmt.Sprint(s.gaps[stream]) != fmt.Sprint(seal.GetElided()) {
			t.Errorf("%s: the chunks leave out %v, the seal says %v", stream, s.gaps[stream], seal.GetElided())
		}
		if len(seal.GetElided()) == 0 && (seal.GetCapturedBytes() != seal.GetPublishedBytes() || !bytes.Equal(seal.GetSha256(), digest[:])) {
			t.Errorf("%s: nothing is lost and yet captured and published differ: %v", stream, seal)
		}
	}
	return s
}

// all returns the payloads of one kind, in order.
func all[T any](s story) []T {
	var list []T
	for _, e := range s.facts {
		if d, ok := e.Data.(T); ok {
			list = append(list, d)
		}
	}
	return list
}

// one returns the only payload of a kind.
func one[T any](t *testing.T, s story) T {
	t.Helper()
	list := all[T](s)
	if len(list) != 1 {
		var zero T
		t.Fatalf("%d facts of type %T, want 1:\n%s", len(list), zero, describe(s.facts))
	}
	return list[0]
}

// signals lists the signals that were sent, in order.
func signals(s story) (names []string) {
	for _, d := range all[*executionv1.TerminationStarted](s) {
		for _, sent := range d.GetSignals() {
			names = append(names, sent.GetSignal().GetName())
		}
	}
	return names
}

// fixture is a runner with a log.
type fixture struct {
	*runner.Runner
	log     *log
	metrics *prometheus.Registry
	data    string
}

// newRunner starts a runner that is stopped at the end of the test. change may be nil.
func newRunner(t *testing.T, change func(*runner.Config)) fixture {
	t.Helper()
	return newRunnerWith(t, func(context.Context, *message.Message) error { return nil }, change)
}

func newRunnerWith(t *testing.T, claim runner.Claim, change func(*runner.Config)) fixture {
	t.Helper()
	f := fixture{log: newLog(), metrics: prometheus.NewRegistry(), data: t.TempDir()}
	c := runner.Config{
		ID: "r1", Host: "h1", DataDir: f.data, Grace: 5 * time.Second, Registry: f.metrics,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&c)
	}
	f.data = c.DataDir
	var err error
	if f.Runner, err = runner.New(c, f.log, claim); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(f.data + "/work"); err != nil || len(left) > 0 {
			t.Errorf("working directories left behind: %v %v", left, err)
		}
	})
	return f
}

// start hands a launch spec to the runner and returns the execution's id.
func (f fixture) start(t *testing.T, spec *executionv1.Prepared) string {
	t.Helper()
	m, id := prepared(t, spec)
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	return id
}

func prepared(t testing.TB, spec *executionv1.Prepared) (*message.Message, string) {
	t.Helper()
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	return preparedAs(t, id, spec), id
}

func preparedAs(t testing.TB, id string, spec *executionv1.Prepared) *message.Message {
	t.Helper()
	e, err := events.Producer{Name: "preparer", Source: "/verbatim/preparer"}.Event(id, 1, 1, time.Now(), spec)
	if err != nil {
		t.Fatal(err)
	}
	e.Traceparent = traceparent
	m, err := codec.ToMessage(e)
	if err != nil {
		t.Fatal(err)
	}
	m.SetContext(t.Context())
	return m
}

// whole lets everything be published.
func whole(spec *executionv1.Prepared) *executionv1.Prepared {
	spec.OutputLimit = &executionv1.OutputLimit{None: true}
	return spec
}

// shell is a launch spec for a script.
func shell(script string) *executionv1.Prepared {
	return &executionv1.Prepared{Argv: []string{"sh", "-c", script}}
}

// child is a launch spec for the test binary in a role.
func child(role string) *executionv1.Prepared {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return &executionv1.Prepared{Argv: []string{self}, Environment: map[string]string{childVariable: role}}
}

// eventually polls a condition that gives no signal.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the test is over")
		}
	}
}

// mkfifo makes a fifo for signals between a test and its process.
func mkfifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeFIFO writes to a fifo that a process reads.
func writeFIFO(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // Not before: closing it would drop what nobody has read yet.
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// metric adds up a metric's values.
func metric(t *testing.T, f fixture, name string) (sum float64) {
	t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
