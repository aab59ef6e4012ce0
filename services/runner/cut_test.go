package runner_test

import (
	"context"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// relay is a supervisor of which so many answers with pipes come without them, as to a worker that is out of descriptors.
func relay(t *testing.T, without *atomic.Int64) *supervisor.Client {
	t.Helper()
	var ends [4]*protocol.Conn
	for i := 0; i < len(ends); i += 2 {
		ours, theirs, err := protocol.Pair()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = ours
		if ends[i+1], err = protocol.New(theirs); err != nil {
			t.Fatal(err)
		}
	}
	host := supervisor.NewHost(slog.New(slog.NewTextHandler(t.Output(), nil)))
	var busy sync.WaitGroup
	busy.Go(func() { _ = host.Serve(ends[3], nil) })
	pass := func(from, to *protocol.Conn, change func(*protocol.Message)) {
		defer to.Close()
		for {
			m, err := from.Receive()
			if err != nil {
				return
			}
			files := m.Files
			change(&m)
			_ = to.Send(m)
			protocol.CloseAll(files)
		}
	}
	busy.Go(func() { pass(ends[1], ends[2], func(*protocol.Message) {}) })
	busy.Go(func() {
		pass(ends[2], ends[1], func(m *protocol.Message) {
			if m.Kind == protocol.Started && without.Add(-1) >= 0 {
				m.Files = nil
			}
		})
	})
	client := supervisor.NewClient(ends[0])
	t.Cleanup(func() {
		_ = client.Close()
		busy.Wait()
		_ = ends[3].Close()
		host.Close()
	})
	return client
}

// A worker that is out of descriptors cannot take the pipes of a process that was started. It asks again, and nothing is lost: the process
// is not said to have never been.
func TestPipesComeLate(t *testing.T) {
	t.Parallel()
	var without atomic.Int64
	without.Store(2)
	client := relay(t, &without)
	f := newRunner(t, func(c *runner.Config) { c.Supervisor = client })
	story := f.log.tell(t, f.start(t, shell(`echo out; echo err >&2; exit 3`)))
	if failed := all[*executionv1.StartFailed](story); len(failed) > 0 {
		t.Fatalf("%v", failed)
	}
	if got := one[*executionv1.ProcessExited](t, story).GetExitCode(); got != 3 {
		t.Errorf("exit code %d", got)
	}
	if out, err := string(story.output[stdout]), string(story.output[stderr]); out != "out\n" || err != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	if n := len(all[*executionv1.ProcessStarted](story)); n != 1 {
		t.Errorf("%d facts say that it was started", n)
	}
}

// A runner that has to be gone before descriptors are free leaves the process to the next one.
func TestPipesDoNotCome(t *testing.T) {
	t.Parallel()
	var without atomic.Int64
	without.Store(math.MaxInt64)
	client := relay(t, &without)
	f := newRunner(t, func(c *runner.Config) { c.Supervisor = client })
	spec := shell(`exec sleep 600`)
	spec.Directory = "/"
	id := f.start(t, spec)
	eventually(t, "it is started", func() bool { return without.Load() < math.MaxInt64 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := f.Stop(ctx); err != nil && !strings.Contains(err.Error(), "kept for the next start") {
		t.Error(err)
	}
	if facts := f.log.of(id); len(facts) > 0 {
		t.Errorf("%d facts say how it went, the first is %s", len(facts), facts[0].Type)
	}
	if left, err := os.ReadDir(f.data + "/attempts"); err != nil || len(left) != 1 {
		t.Errorf("kept: %v, %v", left, err)
	}
}
