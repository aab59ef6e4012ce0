package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

func TestOneExecution(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	id := f.start(t, shell(`echo out; echo err >&2; exit 3`))
	s := f.log.tell(t, id)

	started := one[*executionv1.ProcessStarted](t, s)
	if s.facts[0].Type != events.TypeProcessStarted || started.GetHost() != "h1" || started.GetRunner() != "r1" || started.GetPid() <= 0 {
		t.Errorf("first fact: %s %v", s.facts[0].Type, started)
	}
	if out, err := string(s.output[stdout]), string(s.output[stderr]); out != "out\n" || err != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	exit := one[*executionv1.ProcessExited](t, s)
	if exit.GetExitCode() != 3 || exit.GetSignal() != nil {
		t.Errorf("exit: %v", exit)
	}
	if exit.GetUsage().GetMaxResidentBytes() == 0 || exit.GetUsage().GetMinorPageFaults() == 0 {
		t.Errorf("usage: %v", exit.GetUsage())
	}
	if from, to := started.GetProcessStartedAt().AsTime(), exit.GetEndedAt().AsTime(); to.Before(from) || time.Since(from) > patience {
		t.Errorf("ran from %s to %s", from, to)
	}
}

func TestOutputArrivesWhileTheProcessRuns(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	// The process waits for the test, which waits for the output: without live chunks nothing moves.
	fifo := mkfifo(t)
	id := f.start(t, shell(`printf 'no newline'; printf 'warning' >&2; read x <`+fifo+`; echo " after $x"`))
	f.log.awaitOutput(t, id, stdout, "no newline")
	f.log.awaitOutput(t, id, stderr, "warning")
	writeFIFO(t, fifo, "go\n")
	s := f.log.tell(t, id)
	if got := string(s.output[stdout]); got != "no newline after go\n" {
		t.Errorf("stdout %q", got)
	}
	first := all[*executionv1.OutputChunk](s)[0]
	for _, e := range s.facts {
		if c, ok := e.Data.(*executionv1.OutputChunk); ok && !e.Time.Equal(c.GetCapturedAt().AsTime()) {
			t.Errorf("chunk of %s at %s", c.GetCapturedAt().AsTime(), e.Time)
		}
	}
	if ran := one[*executionv1.ProcessExited](t, s).GetEndedAt().AsTime().Sub(first.GetCapturedAt().AsTime()); ran <= 0 {
		t.Errorf("first chunk was captured %s before the end", ran)
	}
}

func TestTenMegabytesOnBothStreamsAtOnce(t *testing.T) {
	t.Parallel()
	const n = 10_000_000
	f := newRunner(t, nil)
	s := f.log.tell(t, f.start(t, whole(child(fmt.Sprintf("noise:%d", n)))))
	for stream, seed := range map[executionv1.Stream]byte{stdout: 1, stderr: 2} {
		if !bytes.Equal(s.output[stream], noise(seed, n)) {
			t.Errorf("%s: %d bytes, not the ones that were written", stream, len(s.output[stream]))
		}
	}
	if code := one[*executionv1.ProcessExited](t, s).GetExitCode(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	last := time.Time{}
	for _, c := range all[*executionv1.OutputChunk](s) {
		if at := c.GetCapturedAt().AsTime(); at.Before(last) {
			t.Fatalf("%s at offset %d was captured before the chunk in front of it", c.GetStream(), c.GetOffset())
		} else {
			last = at
		}
		if len(c.GetData()) > 256<<10 {
			t.Fatalf("chunk of %d bytes", len(c.GetData()))
		}
	}
}

func TestBytesAreNotTouched(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	s := f.log.tell(t, f.start(t, shell(`printf 'a\000b\377\376\303'; printf '\r\n\r\033[31m' >&2`)))
	if got := s.output[stdout]; string(got) != "a\x00b\xff\xfe\xc3" {
		t.Errorf("stdout %q", got)
	}
	if got := s.output[stderr]; string(got) != "\r\n\r\x1b[31m" {
		t.Errorf("stderr %q", got)
	}
}

func TestLineWithoutEnd(t *testing.T) {
	t.Parallel()
	const megabytes = 48
	f := newRunner(t, nil)
	s := f.log.tell(t, f.start(t, whole(child(fmt.Sprintf("line:%d", megabytes)))))
	if got := s.output[stdout]; len(got) != megabytes<<20 || strings.Trim(string(got), "x") != "" {
		t.Errorf("%d bytes", len(got))
	}
}

func TestEndsBeforeItIsRead(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	for name, want := range map[string]struct {
		script string
		bytes  int
	}{
		"nothing at all":     {`exit 0`, 0},
		"one byte":           {`printf x`, 1},
		"all the pipe holds": {`head -c 65536 /dev/zero`, 65536},
		"a megabyte":         {`head -c 1048576 /dev/zero`, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.log.tell(t, f.start(t, shell(want.script)))
			if got := len(s.output[stdout]); got != want.bytes || len(s.output[stderr]) != 0 {
				t.Errorf("%d bytes on stdout, %q on stderr", got, s.output[stderr])
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Slots = 200 })
	ids := make([]string, 200)
	for i := range ids {
		ids[i] = f.start(t, shell(fmt.Sprintf(`echo out %d; echo err %d >&2; exit %d`, i, i, i)))
	}
	for i, id := range ids {
		s := f.log.tell(t, id)
		if out, err := string(s.output[stdout]), string(s.output[stderr]); out != fmt.Sprintf("out %d\n", i) || err != fmt.Sprintf("err %d\n", i) {
			t.Errorf("%d: stdout %q, stderr %q", i, out, err)
		}
		if code := one[*executionv1.ProcessExited](t, s).GetExitCode(); code != int32(i) {
			t.Errorf("%d: exit code %d", i, code)
		}
	}
}

// While the log is away the process is slowed down, so nothing piles up; afterwards everything is there.
func TestLogAway(t *testing.T) {
	t.Parallel()
	const n = 24 << 20
	const room = 4 << 20
	f := newRunner(t, func(c *runner.Config) { c.SpoolBytes = room })
	back := make(chan struct{})
	f.log.before = func(ctx context.Context, _ []string) error {
		select {
		case <-back:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	report := filepath.Join(t.TempDir(), "report")
	id := f.start(t, whole(child(fmt.Sprintf("blocked:%d:%s", n, report))))
	var taken int
	eventually(t, "the process says that its writes wait, and all room is taken", func() bool {
		text, _ := os.ReadFile(report)
		_, _ = fmt.Sscan(string(text), &taken)
		return taken >= room
	})
	// What the runner keeps: the spool up to its limit, one splice more, and a pipe, which grows to 256 KiB.
	if limit := room + 256<<10 + 256<<10; taken > limit {
		t.Errorf("the process wrote %d bytes before it had to wait, the runner may keep %d", taken, limit)
	}
	if published := f.log.of(id); len(published) != 0 {
		t.Errorf("published while the log was away:\n%s", describe(published))
	}
	close(back)
	s := f.log.tell(t, id)
	if !bytes.Equal(s.output[stdout], noise(1, n)) {
		t.Errorf("%d bytes, not the ones that were written", len(s.output[stdout]))
	}
}

// A process can end, and be seen to end, while its output waits for the log.
func TestLogAwayDoesNotHideTheEnd(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.DrainTime = time.Millisecond })
	back, fails := make(chan struct{}), make(chan struct{}, 1)
	f.log.before = func(ctx context.Context, _ []string) error {
		select {
		case <-back:
			return nil
		default:
			select {
			case fails <- struct{}{}:
			default:
			}
			return errors.New("no broker")
		}
	}
	id := f.start(t, child("noise:1000000"))
	<-fails
	eventually(t, "the process is reaped", func() bool { return len(f.Running()) == 1 && f.Running()[0].GetLastSequence() >= 2 })
	close(back)
	s := f.log.tell(t, id)
	for stream, seed := range map[executionv1.Stream]byte{stdout: 1, stderr: 2} {
		if !bytes.Equal(s.output[stream], noise(seed, 1_000_000)) || s.seals[stream].GetPipeStillHeld() {
			t.Errorf("%s: %d bytes, still held %v", stream, len(s.output[stream]), s.seals[stream].GetPipeStillHeld())
		}
	}
}

func TestResendHasTheSameIDs(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	failures := 0
	f.log.before = func(_ context.Context, ids []string) error {
		if failures++; failures <= 3 {
			return errors.New("not enough replicas")
		}
		return nil
	}
	id := f.start(t, shell(`echo x`))
	f.log.tell(t, id)
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	for i, ids := range f.log.calls[:4] {
		if !slices.Equal(ids, f.log.calls[0]) || ids[0] != id+"/1/runner/1" {
			t.Errorf("call %d has %v, the first had %v", i, ids, f.log.calls[0])
		}
	}
	if got := metric(t, f, "verbatim_runner_publish_retries_total"); got != 3 {
		t.Errorf("%v retries counted", got)
	}
}

func TestSmallFactsShareACall(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	called, ready := make(chan struct{}), make(chan struct{})
	first := true
	f.log.before = func(ctx context.Context, _ []string) error {
		if first {
			first = false
			close(called)
			select {
			case <-ready:
			case <-ctx.Done():
			}
		}
		return nil
	}
	fifo := mkfifo(t)
	id := f.start(t, shell(`read x <`+fifo+`; echo a; echo b >&2`))
	<-called
	writeFIFO(t, fifo, "go\n")
	eventually(t, "four more facts wait", func() bool { return len(f.Running()) == 1 && f.Running()[0].GetLastSequence() == 5 })
	close(ready)
	f.log.tell(t, id)
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	if n := len(f.log.calls); n != 2 {
		t.Errorf("5 facts took %d calls: %v", n, f.log.calls)
	}
}

func TestPublisherPanics(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	panics := 0
	f.log.before = func(context.Context, []string) error {
		if panics++; panics <= 2 {
			panic("nil map")
		}
		return nil
	}
	s := f.log.tell(t, f.start(t, shell(`echo x`)))
	if got := string(s.output[stdout]); got != "x\n" {
		t.Errorf("stdout %q", got)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("VERBATIM_SECRET_OF_THE_RUNNER", "x")
	f := newRunner(t, nil)
	spec := shell(`env; pwd; ls -A | wc -l`)
	spec.Environment = map[string]string{"LANG": "de_DE", "OWN": "a=b c"}
	id := f.start(t, spec)
	s := f.log.tell(t, id)
	got := string(s.output[stdout])
	for _, want := range []string{
		"VERBATIM_EXECUTION_ID=" + id + "\n", "VERBATIM_ATTEMPT=1\n", "TRACEPARENT=" + traceparent + "\n", "LANG=de_DE\n", "OWN=a=b c\n",
		"PATH=/usr/local/sbin:", "HOME=" + f.data + "/work/" + id, "\n" + f.data + "/work/" + id, "\n0\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "VERBATIM_SECRET_OF_THE_RUNNER") {
		t.Error("the runner's own environment is visible")
	}
}
