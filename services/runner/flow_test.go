package runner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/mask"
	"verbatim.dev/services/runner/spool"
)

// facts keeps what is published, by number. The same number must always carry the same fact.
type facts struct {
	mu   sync.Mutex
	list map[uint64]events.Event
	err  error
	away chan struct{} // Closed when the log is there.
}

// leave takes the log away until the function is called that it returns.
func (f *facts) leave() (back func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	away := make(chan struct{})
	f.away = away
	return sync.OnceFunc(func() { close(away) })
}

func (f *facts) PublishContext(ctx context.Context, _ string, msgs ...*message.Message) error {
	f.mu.Lock()
	away := f.away
	f.mu.Unlock()
	if away != nil {
		select {
		case <-away:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range msgs {
		e, err := codec.FromMessage(m)
		if err != nil {
			return err
		}
		if known, again := f.list[e.Sequence]; again && (!bytes.Equal(known.Payload, e.Payload) || known.Type != e.Type) {
			f.err = fmt.Errorf("fact %d is published again and differs:\n%v\n%v", e.Sequence, known.Data, e.Data)
		}
		f.list[e.Sequence] = e
	}
	return nil
}

// tester is what the tests and rapid's have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Cleanup(do func())
}

// relay is an attempt's output from two pipes to the log, driven by hand, so that a worker can be cut short between any two steps.
type relay struct {
	t       tester
	runner  *Runner
	spec    *executionv1.Prepared
	masker  *mask.Masker
	spool   spool.Config
	folder  string
	log     *facts
	writers [2]*os.File
	readers [2]*os.File // The supervisor's.

	a       *attempt
	flows   *flows
	reading sync.WaitGroup
	stop    context.CancelFunc
	sent    chan error
	back    func() // Brings the log back.
}

// newRelay is one in a folder. life bounds what its workers wait for.
func newRelay(life context.Context, t tester, folder string) *relay {
	t.Helper()
	metrics, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, back: func() {}, folder: filepath.Join(folder, "a"), log: &facts{list: make(map[uint64]events.Event)}}
	r.runner = &Runner{
		reserve: &reserve{left: reserveBytes},
		config:  Config{ID: "r1", Logger: slog.New(slog.DiscardHandler)}.withDefaults(), publish: r.log, metrics: metrics, life: life,
		producer: events.Producer{Name: "runner", Source: "/verbatim/runner/r1"},
	}
	r.spec = &executionv1.Prepared{OutputLimit: &executionv1.OutputLimit{None: true}}
	for i := range r.writers {
		if r.readers[i], r.writers[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = r.readers[i].Close(), r.writers[i].Close() })
	}
	return r
}

// hides gives it secrets.
func (r *relay) hides(values ...string) {
	r.t.Helper()
	var secrets []mask.Secret
	for _, v := range values {
		secrets = append(secrets, mask.Secret{Name: "s", Value: []byte(v)})
	}
	var err error
	if r.masker, _, err = mask.New(secrets); err != nil {
		r.t.Fatal(err)
	}
}

// begin is a worker's start.
func (r *relay) begin(first bool) {
	check := func(err error) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	work := events.Event{Subject: "019366e0-7c00-7000-8000-0000000000ab", Attempt: 1}
	if first {
		r.a = newAttempt(r.runner, work, r.spec)
		r.a.folder = r.folder
		check(r.a.begin(journal.Launch{Execution: work.Subject, Attempt: 1, At: time.Unix(1, 0)}))
		r.a.owned()
	} else {
		a, err := r.runner.reopen(r.folder)
		check(err)
		r.a = a
		r.a.spec, r.a.folder = r.spec, r.folder
	}
	r.a.masker = r.masker
	c := r.spool
	c.Preroll = uint64(r.masker.Reach())
	var err error
	r.a.spool, err = spool.Open(c, r.folder, r.a.past.streams[0].mark, r.a.past.streams[1].mark)
	check(err)
	check(r.a.resume())
	r.flows = &flows{a: r.a}
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.sent = stop, make(chan error, 1)
	var ends [2]*os.File
	for i, own := range r.readers {
		fd, err := unix.FcntlInt(own.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		check(err)
		check(unix.SetNonblock(fd, true))
		ends[i] = os.NewFile(uintptr(fd), "pipe")
	}
	r.a.spool.Attach(ends[0], ends[1])
	for _, id := range []executionv1.Stream{1, 2} {
		r.reading.Go(func() { r.a.read(ctx, id) })
	}
	go func() { r.sent <- r.a.facts.Send(ctx) }()
}

// steps takes up to n parts, and stops when there is none for a moment.
func (r *relay) steps(n int) (over bool) {
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		err := r.flows.step(ctx)
		cancel()
		if errors.Is(err, io.EOF) {
			return true
		} else if err != nil {
			return false
		}
	}
	return false
}

// kill ends a worker, which then says and writes nothing any more.
func (r *relay) kill() {
	r.stop()
	<-r.sent
	r.a.spool.Stop(time.Now())
	r.reading.Wait()
	r.a.spool.Close()
	_ = r.a.journal.Close()
}

func (r *relay) close() {
	for _, w := range r.writers {
		_ = w.Close()
	}
}

// drain waits until the pipes are read.
func (r *relay) drain() {
	drained := make(chan struct{})
	go func() {
		r.reading.Wait()
		close(drained)
	}()
	for {
		select {
		case <-drained:
			return
		default:
			r.steps(1) // It may wait for room.
		}
	}
}

// end lets the worker come to the end of both streams.
func (r *relay) end() {
	r.close()
	r.drain()
	for !r.steps(1000) {
	}
	if err := r.flows.flush(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.back()
	r.a.seal(context.Background())
	r.a.facts.Close()
	if err := <-r.sent; err != nil {
		r.t.Fatal(err)
	}
	r.stop()
	r.a.spool.Close()
	_ = r.a.journal.Close()
}

func (r *relay) seal() *executionv1.OutputSealed {
	d, ok := r.log.list[uint64(len(r.log.list))].Data.(*executionv1.OutputSealed)
	if !ok {
		r.t.Fatalf("the last of %d facts is no seal", len(r.log.list))
	}
	return d
}

// check compares the log with what was written.
func (r *relay) check(stream executionv1.Stream, written []byte, limit *spool.Limit) {
	seal := r.seal().GetStreams()[stream-1]
	if seal.GetPipeStillHeld() { // What came later than the end that was written down is nobody's.
		written = written[:seal.GetCapturedBytes()]
	}
	want := written
	var maskedRanges []mask.Range
	if !r.masker.Empty() {
		m := r.masker.Stream(0)
		var more []mask.Range
		want, maskedRanges = m.Write(written)
		rest, more := m.Close()
		want, maskedRanges = append(want, rest...), append(maskedRanges, more...)
	}
	var elided []*executionv1.ByteRange
	published := want
	if size := uint64(len(want)); limit != nil && size > limit.Head+limit.Tail {
		elided = []*executionv1.ByteRange{{Start: limit.Head, End: size - limit.Tail}}
		published = slices.Concat(want[:limit.Head], want[size-limit.Tail:])
	}
	var got []byte
	for n := uint64(1); n <= uint64(len(r.log.list)); n++ {
		e, ok := r.log.list[n]
		if !ok {
			r.t.Fatalf("there is no fact %d", n)
		}
		switch d := e.Data.(type) {
		case *executionv1.OutputChunk:
			if d.GetStream() != stream {
				continue
			}
			end := d.GetOffset() + uint64(len(d.GetData()))
			if end > uint64(len(want)) || !bytes.Equal(d.GetData(), want[d.GetOffset():end]) {
				r.t.Fatalf("%s: %q at %d is not what was written", stream, d.GetData(), d.GetOffset())
			}
			got = append(got, d.GetData()...)
		case *executionv1.OutputSealed:
		default:
			r.t.Fatalf("unexpected fact %v", d)
		}
	}
	whole, part := sha256.Sum256(want), sha256.Sum256(published)
	if !bytes.Equal(got, published) || fmt.Sprint(seal.GetElided()) != fmt.Sprint(elided) {
		r.t.Fatalf("%s of %d bytes: %d published, want %d; elided %v, want %v", stream, len(want), len(got), len(published), seal.GetElided(), elided)
	}
	if seal.GetCapturedBytes() != uint64(len(want)) || seal.GetPublishedBytes() != uint64(len(published)) || len(seal.GetLost()) > 0 ||
		!bytes.Equal(seal.GetSha256(), whole[:]) || !bytes.Equal(seal.GetPublishedSha256(), part[:]) {
		r.t.Fatalf("%s: the seal is %v", stream, seal)
	}
	// Ranges that touch are one.
	var ranges, masked, last uint64
	for _, m := range maskedRanges {
		if ranges == 0 || m.Start != last {
			ranges++
		}
		masked, last = masked+m.End-m.Start, m.End
	}
	if seal.GetMaskedRanges() != ranges || seal.GetMaskedBytes() != masked {
		r.t.Fatalf("%s: %d ranges, %d bytes masked, want %d, %d", stream, seal.GetMaskedRanges(), seal.GetMaskedBytes(), ranges, masked)
	}
}

// However long the streams are, whatever the limit, whatever is secret, and wherever workers are killed: head, tail and elided
// range cover each stream exactly, no number carries two facts, and the digests are those of what the process wrote.
func TestFlow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		folder, err := os.MkdirTemp(t.TempDir(), "flow") //nolint:usetesting // One for each round, which removes it.
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(folder)
		life, abort := context.WithCancelCause(context.Background())
		defer abort(nil)
		r := newRelay(life, rt, folder)
		r.spool = spool.Config{
			ChunkBytes: rapid.IntRange(1, 300).Draw(rt, "chunk"), FlushInterval: time.Millisecond, LimitBytes: 1 << 20,
			StepBytes: uint64(rapid.IntRange(1, 300).Draw(rt, "step")), Logger: slog.New(slog.DiscardHandler),
		}
		if rapid.Bool().Draw(rt, "limited") {
			limit := spool.Limit{Head: uint64(rapid.IntRange(0, 700).Draw(rt, "head")), Tail: uint64(rapid.IntRange(0, 700).Draw(rt, "tail"))}
			r.spool.Limit = &limit
			r.spec.OutputLimit = &executionv1.OutputLimit{HeadBytes: limit.Head, TailBytes: limit.Tail}
		}
		words := []string{"abcab", "cabc", "hunter2-abcabc-long-enough-to-span"}
		if rapid.Bool().Draw(rt, "secrets") {
			r.hides(words...)
		}
		var written [2][]byte
		text := rapid.Custom(func(rt *rapid.T) []byte {
			if rapid.IntRange(0, 3).Draw(rt, "word") == 0 {
				w := rapid.SampledFrom(words).Draw(rt, "which")
				return []byte(w[:rapid.IntRange(1, len(w)).Draw(rt, "part")])
			}
			return bytes.Repeat([]byte(rapid.StringMatching(`[abc]{1,4}`).Draw(rt, "text")), rapid.IntRange(1, 400).Draw(rt, "times"))
		})
		r.begin(true)
		for range rapid.IntRange(1, 16).Draw(rt, "actions") {
			switch rapid.IntRange(0, 7).Draw(rt, "action") {
			case 0, 1, 2:
				i, data := rapid.IntRange(0, 1).Draw(rt, "stream"), text.Draw(rt, "data")
				if _, err := r.writers[i].Write(data); err != nil {
					rt.Fatal(err)
				}
				written[i] = append(written[i], data...)
			case 3, 4:
				r.steps(rapid.IntRange(1, 20).Draw(rt, "steps"))
			case 5:
				r.back()
			case 6:
				r.back()
				r.back = r.log.leave()
			default:
				r.kill()
				r.begin(false)
			}
		}
		if rapid.Bool().Draw(rt, "kill in the tail") {
			held := rapid.Bool().Draw(rt, "held")
			if held {
				r.a.spool.Stop(time.Now())
			} else {
				r.close()
			}
			r.drain()
			r.steps(rapid.IntRange(0, 20).Draw(rt, "steps of the tail"))
			r.kill()
			if held {
				more := text.Draw(rt, "more")
				if _, err := r.writers[0].Write(more); err != nil {
					rt.Fatal(err)
				}
				written[0] = append(written[0], more...)
			}
			r.begin(false)
		}
		r.end()
		if r.log.err != nil {
			rt.Fatal(r.log.err)
		}
		r.check(1, written[0], r.spool.Limit)
		r.check(2, written[1], r.spool.Limit)
	})
}
