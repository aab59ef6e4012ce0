package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

func TestKilledBySignal(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	for name, number := range map[string]int32{"SEGV": 11, "KILL": 9, "TERM": 15, "ABRT": 6, "PIPE": 13} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.log.tell(t, f.start(t, shell(`ulimit -c 0; echo before; kill -`+name+` $$; echo after`)))
			exit := one[*executionv1.ProcessExited](t, s)
			if _, isCode := exit.GetStatus().(*executionv1.ProcessExited_ExitCode); isCode || exit.GetSignal().GetName() != name || exit.GetSignal().GetNumber() != number {
				t.Errorf("exit: %v", exit)
			}
			if got := string(s.output[stdout]); got != "before\n" {
				t.Errorf("stdout %q", got)
			}
			if n := len(all[*executionv1.TerminationStarted](s)); n != 0 {
				t.Errorf("%d terminations, and nobody asked for one", n)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	for _, code := range []int32{0, 1, 126, 127, 128, 255} {
		s := f.log.tell(t, f.start(t, shell(fmt.Sprintf("exit %d", code))))
		status, ok := one[*executionv1.ProcessExited](t, s).GetStatus().(*executionv1.ProcessExited_ExitCode)
		if !ok || status.ExitCode != code {
			t.Errorf("%d: %v", code, status)
		}
	}
}

// inOtherRunner lets the test binary play a runner, and returns what its only attempt says.
func inOtherRunner(t *testing.T, role string) story {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childVariable+"="+role, "TMPDIR="+t.TempDir())
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	l := newLog()
	for line := range strings.Lines(string(out)) {
		var f frame
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		data, _ := events.NewPayload(f.Type)
		if err := proto.Unmarshal(f.Payload, data); err != nil {
			t.Fatal(err)
		}
		l.facts["x"] = append(l.facts["x"], events.Event{
			Type: f.Type, Data: data, Sequence: uint64(len(l.facts["x"]) + 1), Attempt: 1, Source: "/verbatim/runner/r1", Traceparent: traceparent,
		})
	}
	return l.tell(t, "x")
}

// With SIGCHLD ignored the kernel reaps by itself and the exit status is gone: that is all that is lost.
func TestWaitFails(t *testing.T) {
	t.Parallel()
	s := inOtherRunner(t, "runner-without-sigchld")
	failed := one[*executionv1.WaitFailed](t, s)
	if failed.GetErrno() != int32(syscall.ECHILD) || !strings.Contains(failed.GetCause(), "no child processes") {
		t.Errorf("wait: %v", failed)
	}
	if out, err := string(s.output[stdout]), string(s.output[stderr]); out != "all of it\n" || err != "and this\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := shell(`echo partial; sleep 600`)
	spec.Timeout = durationpb.New(5 * time.Second)
	s := f.log.tell(t, f.start(t, spec))
	term := one[*executionv1.TerminationStarted](t, s)
	if term.GetCause() != executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT || !strings.Contains(term.GetMessage(), "5s") {
		t.Errorf("termination: %v", term)
	}
	if got := signals(s); !slices.Equal(got, []string{"TERM"}) {
		t.Errorf("signals %v", got)
	}
	started, sent := one[*executionv1.ProcessStarted](t, s).GetProcessStartedAt().AsTime(), term.GetSignals()[0].GetSentAt().AsTime()
	if after := sent.Sub(started); after < 5*time.Second || after > 60*time.Second {
		t.Errorf("TERM was sent %s after the start", after)
	}
	if got := string(s.output[stdout]); got != "partial\n" {
		t.Errorf("stdout %q", got)
	}
	// The group got the signal, sleep included: nothing held the pipe.
	if name := one[*executionv1.ProcessExited](t, s).GetSignal().GetName(); name != "TERM" || s.seals[stdout].GetPipeStillHeld() {
		t.Errorf("signal %s, seal %v", name, s.seals[stdout])
	}
}

func TestIgnoresTerm(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := child("ignore-term")
	spec.Grace = durationpb.New(200 * time.Millisecond)
	id := f.start(t, spec)
	f.log.awaitOutput(t, id, stdout, "ready")
	f.Cancel(id, "somebody", "enough")
	s := f.log.tell(t, id)
	list := all[*executionv1.TerminationStarted](s)
	if got := signals(s); !slices.Equal(got, []string{"TERM", "KILL"}) || len(list) != 2 {
		t.Fatalf("signals %v in %d facts", got, len(list))
	}
	for _, d := range list {
		if d.GetCause() != executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL || d.GetRequestedBy() != "somebody" || d.GetMessage() != "enough" {
			t.Errorf("termination: %v", d)
		}
	}
	if grace := list[1].GetSignals()[0].GetSentAt().AsTime().Sub(list[0].GetSignals()[0].GetSentAt().AsTime()); grace < 200*time.Millisecond {
		t.Errorf("KILL came %s after TERM", grace)
	}
	if name := one[*executionv1.ProcessExited](t, s).GetSignal().GetName(); name != "KILL" {
		t.Errorf("killed by %s", name)
	}
}

// The leader obeys TERM and its child does not: the child gets the same grace and then the same KILL.
func TestRestOfTheGroupIsKilled(t *testing.T) {
	t.Parallel()
	for name, redirect := range map[string]string{"that holds the pipes": "", "that holds no pipe": ">/dev/null 2>&1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newRunner(t, nil)
			fifo := mkfifo(t)
			spec := shell(`sh -c 'trap "" TERM; echo $$ >` + fifo + `; while :; do sleep 1; done' ` + redirect + ` & read pid <` + fifo + `; echo $pid; wait`)
			spec.Grace = durationpb.New(300 * time.Millisecond)
			id := f.start(t, spec)
			f.log.awaitOutput(t, id, stdout, "\n")
			f.Cancel(id, "", "")
			s := f.log.tell(t, id)
			if got := signals(s); !slices.Equal(got, []string{"TERM", "KILL"}) {
				t.Errorf("signals %v", got)
			}
			if name := one[*executionv1.ProcessExited](t, s).GetSignal().GetName(); name != "TERM" {
				t.Errorf("the leader was killed by %s", name)
			}
			if s.seals[stdout].GetPipeStillHeld() {
				t.Error("the pipe is still held after the KILL")
			}
			pid := atoi(t, s.output[stdout])
			eventually(t, "the child is gone", func() bool { return !alive(pid) })
		})
	}
}

// A daemon that holds the pipe delays the seal by the drain time and no more, and lives on.
func TestGrandchildHoldsThePipe(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.DrainTime = 300 * time.Millisecond })
	file := t.TempDir() + "/pid"
	s := f.log.tell(t, f.start(t, shell(`setsid sh -c 'echo $$ >`+file+`; exec sleep 600' 2>/dev/null & while [ ! -s `+file+` ]; do sleep 0.01; done; echo $!; echo x >&2`)))
	pid := atoi(t, s.output[stdout])
	if !alive(pid) {
		t.Error("the daemon was killed")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	if !s.seals[stdout].GetPipeStillHeld() || s.seals[stderr].GetPipeStillHeld() {
		t.Errorf("seals: %v", s.seals)
	}
	end := one[*executionv1.ProcessExited](t, s)
	if seal := s.facts[len(s.facts)-1].Time.Sub(end.GetEndedAt().AsTime()); end.GetExitCode() != 0 || seal < 300*time.Millisecond || seal > patience {
		t.Errorf("exit %v, sealed %s later", end, seal)
	}
}

// What a grandchild writes during the drain is kept, and one that never stops writing does not keep the seal away.
func TestGrandchildWrites(t *testing.T) {
	t.Parallel()
	t.Run("in time", func(t *testing.T) {
		t.Parallel()
		f := newRunner(t, func(c *runner.Config) { c.DrainTime = patience })
		fifo := mkfifo(t)
		id := f.start(t, shell(`(read x <`+fifo+`; echo late) & echo early`))
		f.log.awaitType(t, id, events.TypeProcessExited)
		writeFIFO(t, fifo, "go\n")
		s := f.log.tell(t, id)
		if got := string(s.output[stdout]); got != "early\nlate\n" || s.seals[stdout].GetPipeStillHeld() {
			t.Errorf("stdout %q, seal %v", got, s.seals[stdout])
		}
	})
	t.Run("for ever", func(t *testing.T) {
		t.Parallel()
		f := newRunner(t, func(c *runner.Config) { c.DrainTime = 500 * time.Millisecond })
		s := f.log.tell(t, f.start(t, shell(`setsid cat /dev/zero 2>/dev/null & exit 0`)))
		if !s.seals[stdout].GetPipeStillHeld() || len(s.output[stdout]) == 0 {
			t.Errorf("seal %v", s.seals[stdout])
		}
	})
}

func TestFirstCauseStays(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := child("ignore-term")
	spec.Timeout, spec.Grace = durationpb.New(5*time.Second), durationpb.New(700*time.Millisecond)
	id := f.start(t, spec)
	f.log.awaitType(t, id, events.TypeTerminationStarted)
	f.Cancel(id, "somebody", "too late")
	s := f.log.tell(t, id)
	for _, d := range all[*executionv1.TerminationStarted](s) {
		if d.GetCause() != executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT || d.GetRequestedBy() != "" {
			t.Errorf("termination: %v", d)
		}
	}
	if got := signals(s); len(got) != 2 {
		t.Errorf("signals %v", got)
	}
}

func TestCancelTwiceIsOnce(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	id := f.start(t, shell(`echo ready; sleep 600`))
	f.log.awaitOutput(t, id, stdout, "ready")
	f.Cancel(id, "first", "a\nreason")
	f.Cancel(id, "second", "")
	s := f.log.tell(t, id)
	if d := one[*executionv1.TerminationStarted](t, s); d.GetRequestedBy() != "first" || d.GetMessage() != "a reason" {
		t.Errorf("termination: %v", d)
	}
	f.Cancel(id, "third", "") // After the end: nothing.
	if again := f.log.tell(t, id); len(again.facts) != len(s.facts) {
		t.Errorf("%d facts became %d", len(s.facts), len(again.facts))
	}
}

func TestCancelBeforeStart(t *testing.T) {
	t.Parallel()
	claims := 0
	f := newRunnerWith(t, countClaims(&claims), nil)
	m, id := prepared(t, shell(`echo never`))
	f.Cancel(id, "somebody", "changed my mind")
	f.Cancel(id, "another", "")
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	s := f.log.tell(t, id)
	failed := one[*executionv1.StartFailed](t, s)
	if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED ||
		failed.GetMessage() != "cancelled before the start by somebody: changed my mind" {
		t.Errorf("start: %v", failed)
	}
	if len(s.facts) != 2 || claims != 1 {
		t.Errorf("%d claims, facts:\n%s", claims, describe(s.facts))
	}
}

// One that waits for a slot is cancelled without ever getting one.
func TestCancelWhileWaitingForASlot(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Slots = 1 })
	first := f.start(t, shell(`echo ready; sleep 600`))
	f.log.awaitOutput(t, first, stdout, "ready")
	m, second := prepared(t, shell(`echo never`))
	handled := make(chan error, 1)
	go func() { handled <- f.Handle(m) }()
	f.Cancel(second, "somebody", "")
	if err := <-handled; err != nil {
		t.Fatal(err)
	}
	s := f.log.tell(t, second)
	if failed := one[*executionv1.StartFailed](t, s); failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED {
		t.Errorf("start: %v", failed)
	}
	eventually(t, "only the first one is left", func() bool {
		running := f.Running()
		return len(running) == 1 && running[0].GetExecution() == first
	})
	f.Cancel(first, "", "")
	f.log.tell(t, first)
}

// fragileHandler is a log handler that panics on one message.
type fragileHandler struct {
	slog.Handler
	message string
}

func (h fragileHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == h.message {
		panic("log handler is broken")
	}
	return h.Handler.Handle(ctx, r)
}

func (h fragileHandler) WithAttrs(list []slog.Attr) slog.Handler {
	return fragileHandler{h.Handler.WithAttrs(list), h.message}
}

// A panic in an attempt ends that attempt, with what was seen of it, and no other.
func TestPanicEndsOneAttempt(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Logger = slog.New(fragileHandler{c.Logger.Handler(), "signal sent"}) })
	fifo := mkfifo(t)
	other := f.start(t, shell(`read x <`+fifo+`; echo unharmed`))
	id := f.start(t, shell(`trap "" TERM; echo $$; while :; do sleep 1; done`))
	f.log.awaitOutput(t, id, stdout, "\n")
	f.Cancel(id, "", "")
	s := f.log.tell(t, id)
	if failed := one[*executionv1.WaitFailed](t, s); !strings.Contains(failed.GetCause(), "internal error in the runner") {
		t.Errorf("wait: %v", failed)
	}
	pid := atoi(t, s.output[stdout])
	eventually(t, "the process is gone and reaped", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return errors.Is(err, os.ErrNotExist)
	})
	writeFIFO(t, fifo, "go\n")
	if got := string(f.log.tell(t, other).output[stdout]); got != "unharmed\n" {
		t.Errorf("the other one: %q", got)
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func atoi(t *testing.T, text []byte) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
