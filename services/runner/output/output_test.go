package output_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/output"
)

const (
	stdout = executionv1.Stream_STREAM_STDOUT
	stderr = executionv1.Stream_STREAM_STDERR
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a capture of two pipes whose write ends the test holds.
type rig struct {
	*output.Capture
	out, err *os.File
	read     sync.WaitGroup
	failed   [3]error

	mu     sync.Mutex
	chunks []output.Chunk
	sink   func(output.Chunk) error
	got    chan struct{}
}

func newRig(t *testing.T, c output.Config) *rig {
	t.Helper()
	outRead, outWrite := pipe(t)
	errRead, errWrite := pipe(t)
	r := &rig{out: outWrite, err: errWrite, got: make(chan struct{}, 1<<20)}
	r.start(c, outRead, errRead)
	return r
}

func (r *rig) start(c output.Config, out, err *os.File) {
	r.Capture = output.New(c, out, err, r.take)
	for _, id := range []executionv1.Stream{stdout, stderr} {
		r.read.Go(func() { r.failed[id] = r.Read(id) })
	}
}

func (r *rig) take(c output.Chunk) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sink != nil {
		if err := r.sink(c); err != nil {
			return err
		}
	}
	c.Data = bytes.Clone(c.Data)
	r.chunks = append(r.chunks, c)
	r.got <- struct{}{}
	return nil
}

func (r *rig) finish(t *testing.T) map[executionv1.Stream]*executionv1.StreamSeal {
	t.Helper()
	_, _ = r.out.Close(), r.err.Close()
	r.read.Wait()
	return r.sealed()
}

func (r *rig) sealed() map[executionv1.Stream]*executionv1.StreamSeal {
	seals := make(map[executionv1.Stream]*executionv1.StreamSeal)
	for _, s := range r.Seal() {
		seals[s.GetStream()] = s
	}
	return seals
}

func (r *rig) texts() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.chunks {
		list = append(list, string(c.Data))
	}
	return list
}

func pipe(t *testing.T) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = read.Close(), write.Close() })
	return read, write
}

func write(t *testing.T, f *os.File, text string) {
	t.Helper()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestFullChunksDoNotWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, output.Config{ChunkBytes: 4, FlushInterval: time.Hour})
	write(t, r.out, "abcdefghij")
	<-r.got
	<-r.got
	if got := r.texts(); !slices.Equal(got, []string{"abcd", "efgh"}) {
		t.Errorf("chunks %q", got)
	}
	r.finish(t)
	if got := r.texts(); !slices.Equal(got, []string{"abcd", "efgh", "ij"}) {
		t.Errorf("chunks %q", got)
	}
}

func TestOldBytesGoOut(t *testing.T) {
	t.Parallel()
	const interval = 50 * time.Millisecond
	r := newRig(t, output.Config{ChunkBytes: 1 << 10, FlushInterval: interval})
	for _, text := range []string{"first", "second"} {
		written := time.Now()
		write(t, r.out, text)
		<-r.got // Nothing else is written and nothing is closed.
		if waited := time.Since(written); waited < interval/2 {
			t.Errorf("%s went out after %s", text, waited)
		}
	}
	if got := r.texts(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("chunks %q", got)
	}
	r.finish(t)
}

// Taking turns, with the interval far away: the order is that of the writes, since a turn cuts.
func TestTurnsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, output.Config{ChunkBytes: 1 << 10, FlushInterval: time.Hour})
	captured := func(id executionv1.Stream, n uint64) {
		for r.Captured(id) < n {
			<-time.After(time.Millisecond)
		}
		<-time.After(10 * time.Millisecond) // The turn has to be slower than 5 ms.
	}
	write(t, r.out, "one ")
	captured(stdout, 4)
	write(t, r.err, "two ")
	captured(stderr, 4)
	write(t, r.out, "three ")
	captured(stdout, 10)
	write(t, r.err, "four ")
	captured(stderr, 9)
	r.finish(t)
	if got := r.texts(); !slices.Equal(got, []string{"one ", "two ", "three ", "four "}) {
		t.Errorf("chunks %q", got)
	}
}

func TestSinkThatWaitsStopsTheReading(t *testing.T) {
	t.Parallel()
	r := newRig(t, output.Config{ChunkBytes: 1, FlushInterval: time.Hour})
	enter, leave := make(chan struct{}, 1), make(chan struct{})
	r.mu.Lock()
	r.sink = func(output.Chunk) error {
		select {
		case enter <- struct{}{}:
		default:
		}
		<-leave
		return nil
	}
	r.mu.Unlock()
	write(t, r.out, "x")
	<-enter
	// Nobody reads: what fits into the pipe is taken and then a write waits.
	if err := r.err.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := r.err.Write(make([]byte, 1<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 128<<10 {
		t.Errorf("%d bytes went into a pipe that nobody reads: %v", n, err)
	}
	close(leave)
	if s := r.finish(t)[stderr]; s.GetCapturedBytes() != uint64(n) || s.GetPublishedBytes() != uint64(n) {
		t.Errorf("%d written, seal %v", n, s)
	}
}

func TestWhatTheSinkRefusesIsListed(t *testing.T) {
	t.Parallel()
	r := newRig(t, output.Config{ChunkBytes: 2, FlushInterval: time.Hour})
	r.mu.Lock()
	r.sink = func(c output.Chunk) error {
		if c.Offset == 2 || c.Offset == 4 || c.Offset == 8 {
			return errors.New("no")
		}
		return nil
	}
	r.mu.Unlock()
	write(t, r.out, "0123456789")
	seal := r.finish(t)[stdout]
	var lost []uint64 // A message's text has spaces that differ from build to build.
	for _, r := range seal.GetLost() {
		lost = append(lost, r.GetStart(), r.GetEnd())
	}
	if !slices.Equal(lost, []uint64{2, 6, 8, 10}) || seal.GetCapturedBytes() != 10 || seal.GetPublishedBytes() != 4 {
		t.Errorf("seal %v", seal)
	}
	if len(seal.GetSha256()) != 0 || len(seal.GetPublishedSha256()) != 32 {
		t.Errorf("digests %x and %x: that of the captured bytes is not known", seal.GetSha256(), seal.GetPublishedSha256())
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	r := newRig(t, output.Config{ChunkBytes: 1 << 20, FlushInterval: time.Hour})
	write(t, r.out, "kept")
	_ = r.err.Close()
	r.Stop(time.Now().Add(50 * time.Millisecond))
	r.Stop(time.Now().Add(time.Hour)) // The earlier one holds.
	r.read.Wait()
	seals := r.sealed()
	if s := seals[stdout]; !s.GetPipeStillHeld() || s.GetCapturedBytes() != 4 {
		t.Errorf("stdout: %v", s)
	}
	if s := seals[stderr]; s.GetPipeStillHeld() {
		t.Errorf("stderr: %v", s)
	}
	if _, err := r.out.WriteString("too late"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the read end is still open: %v", err)
	}
}

// Time is long over and nothing was read yet: what the pipe holds is taken first, and the end is seen.
func TestStopInThePastLosesNothing(t *testing.T) {
	t.Parallel()
	outRead, outWrite := pipe(t)
	errRead, errWrite := pipe(t)
	write(t, outWrite, string(make([]byte, 60_000)))
	write(t, errWrite, "held")
	_ = outWrite.Close()
	r := &rig{out: outWrite, err: errWrite, got: make(chan struct{}, 100)}
	r.Capture = output.New(output.Config{ChunkBytes: 1 << 10, FlushInterval: time.Hour}, outRead, errRead, r.take)
	r.Stop(time.Now().Add(-time.Hour))
	for _, id := range []executionv1.Stream{stdout, stderr} {
		r.read.Go(func() { r.failed[id] = r.Read(id) })
	}
	r.read.Wait()
	seals := r.sealed()
	if s := seals[stdout]; s.GetCapturedBytes() != 60_000 || s.GetPipeStillHeld() {
		t.Errorf("stdout: %v", s)
	}
	if s := seals[stderr]; s.GetCapturedBytes() != 4 || !s.GetPipeStillHeld() {
		t.Errorf("stderr: %v", s)
	}
}

// A descriptor that is not open for reading can be asked how much the pipe holds and cannot be read: a real
// error with bytes that are known to exist.
func TestReadErrorListsWhatTheKernelHolds(t *testing.T) {
	t.Parallel()
	_, outWrite := pipe(t)
	errRead, errWrite := pipe(t)
	write(t, outWrite, "12345")
	write(t, errWrite, "fine")
	r := &rig{out: outWrite, err: errWrite, got: make(chan struct{}, 100)}
	r.start(output.Config{ChunkBytes: 1 << 10, FlushInterval: time.Hour}, outWrite, errRead)
	_ = errWrite.Close()
	r.read.Wait()
	seals := r.sealed()
	var failed *output.ReadError
	if !errors.As(r.failed[stdout], &failed) || failed.Offset != 0 || !errors.Is(failed, unix.EBADF) {
		t.Errorf("error %v", r.failed[stdout])
	}
	if s := seals[stdout]; s.GetCapturedBytes() != 5 || s.GetPublishedBytes() != 0 || fmt.Sprint(s.GetLost()) != "[end:5]" || len(s.GetSha256()) != 0 {
		t.Errorf("stdout: %v", s)
	}
	if s := seals[stderr]; s.GetCapturedBytes() != 4 || len(s.GetLost()) != 0 {
		t.Errorf("stderr: %v", s)
	}
}

func TestEmptySeal(t *testing.T) {
	t.Parallel()
	for _, s := range output.EmptySeal() {
		if s.GetCapturedBytes() != 0 || fmt.Sprintf("%x", s.GetSha256()) != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
			t.Errorf("seal %v", s)
		}
	}
}
