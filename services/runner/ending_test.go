package runner_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// former is a supervisor that a former worker let start a process.
type former struct {
	client *supervisor.Client
	folder string
	id     string
}

// leave plays a former worker that was killed: its journal ends as given.
func leave(t *testing.T, data, script string, entries ...journal.Entry) former {
	t.Helper()
	ours, theirs, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := protocol.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	host := supervisor.NewHost(slog.New(slog.NewTextHandler(t.Output(), nil)))
	var serving sync.WaitGroup
	serving.Go(func() { _ = host.Serve(conn, nil) })
	f := former{client: supervisor.NewClient(ours)}
	t.Cleanup(func() {
		_ = f.client.Close()
		serving.Wait()
		_ = conn.Close()
		host.Close()
	})
	if f.id, err = events.NewExecutionID(); err != nil {
		t.Fatal(err)
	}
	f.folder = filepath.Join(data, "attempts", f.id+"-1")
	if err := os.MkdirAll(f.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	j, _, err := journal.Open(filepath.Join(f.folder, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := proto.Marshal(shell(script))
	if err != nil {
		t.Fatal(err)
	}
	launch := journal.Entry{Launch: &journal.Launch{Execution: f.id, Attempt: 1, Payload: payload, At: time.Now(), Traceparent: traceparent}}
	for _, e := range append([]journal.Entry{launch, {Claimed: true}}, entries...) {
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := f.client.Start(f.id+"/1", f.folder, protocol.Command{
		Argv: shell(script).GetArgv(), Directory: t.TempDir(), Environment: map[string]string{"PATH": os.Getenv("PATH")},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	protocol.CloseAll([]*os.File{p.Stdout, p.Stderr})
	return f
}

func intention(t *testing.T, sig syscall.Signal, at time.Time) journal.Entry {
	t.Helper()
	payload, err := proto.Marshal(&executionv1.TerminationStarted{Cause: executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT, Message: "ran into its timeout of 1s"})
	if err != nil {
		t.Fatal(err)
	}
	return journal.Entry{Ending: &journal.Ending{Signal: int(sig), At: at, Payload: payload}}
}

// A worker was killed between the signal and the fact about it. The next one says why the process ended, or goes on with ending it.
func TestKilledWhileItSentASignal(t *testing.T) {
	t.Parallel()
	long, ago := "exec sleep 600", time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		script  string
		entries func(t *testing.T) []journal.Entry
		facts   int
		signals string
	}{
		"nobody got it":  {long, func(t *testing.T) []journal.Entry { return []journal.Entry{intention(t, syscall.SIGTERM, ago)} }, 1, "TERM"},
		"the second one": {`trap "" TERM; ` + long, func(t *testing.T) []journal.Entry { return []journal.Entry{intention(t, syscall.SIGKILL, ago)} }, 1, "KILL"},
		"it ended":       {"exit 3", func(t *testing.T) []journal.Entry { return []journal.Entry{intention(t, syscall.SIGTERM, ago)} }, 1, ""},
		"it had ended before": {"exit 3", func(t *testing.T) []journal.Entry {
			return []journal.Entry{intention(t, syscall.SIGTERM, time.Now().Add(time.Hour))}
		}, 0, ""},
		"nobody was there for it": {"exit 3", func(t *testing.T) []journal.Entry {
			return []journal.Entry{intention(t, syscall.SIGTERM, ago), intention(t, 0, ago)}
		}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			left := leave(t, data, c.script, c.entries(t)...)
			if strings.HasPrefix(c.script, "exit") {
				eventually(t, "the process has ended", func() bool {
					_, err := os.Stat(filepath.Join(left.folder, protocol.ExitFile))
					return err == nil
				})
			}
			f := newRunner(t, func(c *runner.Config) { c.DataDir, c.Supervisor = data, left.client })
			if n, err := f.Adopt(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d adopted: %v", n, err)
			}
			f.log.awaitType(t, left.id, events.TypeOutputSealed)
			s := f.log.tell(t, left.id)
			ends := all[*executionv1.TerminationStarted](s)
			if len(ends) != c.facts || strings.Join(signals(s), " ") != c.signals {
				t.Fatalf("signals %q, facts:\n%s", signals(s), describe(s.facts))
			}
			for _, e := range ends {
				if e.GetCause() != executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT || !strings.HasPrefix(e.GetMessage(), "ran into its timeout of 1s") {
					t.Errorf("%v", e)
				}
			}
			one[*executionv1.ProcessExited](t, s)
		})
	}
}
