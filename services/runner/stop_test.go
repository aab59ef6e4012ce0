package runner_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

func TestStopWhileTwentyRun(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = f.start(t, shell(`trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done`))
		f.log.awaitOutput(t, ids[i], stdout, "up")
	}
	if n := len(f.Running()); n != 20 || metric(t, f, "verbatim_runner_running") != 20 {
		t.Errorf("%d running", n)
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, id := range ids {
		if facts := f.log.of(id); facts[len(facts)-1].Data.ProtoReflect().Descriptor().Name() != "OutputSealed" {
			t.Fatalf("Stop returned before everything was published:\n%s", describe(facts))
		}
		s := f.log.tell(t, id)
		if d := one[*executionv1.TerminationStarted](t, s); d.GetCause() != executionv1.TerminationCause_TERMINATION_CAUSE_RUNNER_SHUTDOWN {
			t.Errorf("termination: %v", d)
		}
		if got := string(s.output[stdout]); got != "up\nbye\n" || one[*executionv1.ProcessExited](t, s).GetExitCode() != 3 {
			t.Errorf("stdout %q", got)
		}
		written += len(s.output[stdout]) + len(s.output[stderr])
	}
	m, _ := prepared(t, shell("echo x"))
	if err := f.Handle(m); !errors.Is(err, runner.ErrStopping) {
		t.Errorf("after Stop, Handle says %v", err)
	}
	if metric(t, f, "verbatim_runner_running") != 0 || metric(t, f, "verbatim_runner_ended_total") != 20 || metric(t, f, "verbatim_runner_started_total") != 20 {
		t.Error("metrics do not add up")
	}
	if got := metric(t, f, "verbatim_runner_captured_bytes_total"); got != float64(written) {
		t.Errorf("%v bytes counted, %d written", got, written)
	}
}

func TestStopLetsProcessesFinish(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.ShutdownGrace = patience })
	fifo := mkfifo(t)
	id := f.start(t, shell(`echo up; read x <`+fifo+`; echo done`))
	f.log.awaitOutput(t, id, stdout, "up")
	stopped := make(chan error, 1)
	go func() { stopped <- f.Stop(context.Background()) }()
	eventually(t, "Stop was called", func() bool {
		m, _ := prepared(t, shell("true"))
		return errors.Is(f.Handle(m), runner.ErrStopping)
	})
	writeFIFO(t, fifo, "go\n")
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	s := f.log.tell(t, id)
	if got := string(s.output[stdout]); got != "up\ndone\n" || len(signals(s)) != 0 {
		t.Errorf("stdout %q, signals %v", got, signals(s))
	}
}

func TestStopWakesWhoWaitsForASlot(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Slots = 1 })
	id := f.start(t, shell(`echo up; exec sleep 600`))
	f.log.awaitOutput(t, id, stdout, "up")
	m, second := prepared(t, shell("echo never"))
	handled := make(chan error, 1)
	go func() { handled <- f.Handle(m) }()
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-handled; !errors.Is(err, runner.ErrStopping) {
		t.Errorf("Handle says %v", err)
	}
	if n := len(f.log.of(second)); n != 0 {
		t.Errorf("%d facts about what was not started", n)
	}
}

// A deadline that is shorter than the grace: killed in time, and everything is published all the same.
func TestStopWithLittleTime(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Grace, c.ShutdownGrace = time.Hour, time.Hour })
	id := f.start(t, child("ignore-term"))
	f.log.awaitOutput(t, id, stdout, "ready")
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	if err := f.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	s := f.log.tell(t, id)
	if got := signals(s); len(got) != 2 || got[1] != "KILL" {
		t.Errorf("signals %v", got)
	}
}

// The log stays away for ever: Stop ends with its context, says so, and leaves nothing behind.
func TestStopWithoutLog(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	down := make(chan struct{}, 1)
	f.log.before = func(context.Context, []string) error {
		select {
		case down <- struct{}{}:
		default:
		}
		return errors.New("no broker")
	}
	file := t.TempDir() + "/pid"
	id := f.start(t, shell(`echo $$ >`+file+`.new; mv `+file+`.new `+file+`; exec cat /dev/zero`))
	<-down
	var pid []byte
	eventually(t, "the process runs", func() (ok bool) {
		var err error
		pid, err = os.ReadFile(file)
		return err == nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Stop(ctx); err == nil {
		t.Error("Stop hides that facts are lost")
	}
	if n := len(f.log.of(id)); n != 0 {
		t.Errorf("%d facts published", n)
	}
	eventually(t, "the process is gone", func() bool { return !alive(atoi(t, pid)) })
}
