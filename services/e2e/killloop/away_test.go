package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"verbatim.dev/events"
	"verbatim.dev/services/e2e/rig"
	"verbatim.dev/services/gateway/api"
)

// The broker is away, and then the worker dies. The next worker reads on what processes write, and ends who runs into a timeout; when the
// broker is back, everything is in the log.
func TestWorkerDiesWhileTheBrokerIsAway(t *testing.T) {
	p := plan{mode: "supervisor", dir: t.TempDir()}
	l := &loop{plan: p, out: t.Output()}
	failed := true
	defer func() {
		if err := l.close(failed); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.dir, "runner.log"))
			t.Logf("runner.log:\n%s", log[max(0, len(log)-10_000):])
		}
	}()
	if err := l.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	submit := func(script, timeout string) string {
		id, err := events.NewExecutionID()
		if err != nil {
			t.Fatal(err)
		}
		request := api.SubmitRequest{Command: &api.Command{Argv: []string{"sh", "-c", "cd " + p.dir + "\n" + script}}, Timeout: timeout, Grace: "5m"}
		if _, err := l.client().SubmitAs(t.Context(), id, request); err != nil {
			t.Fatal(err)
		}
		return id
	}
	wait := func(what string, ok func() error) {
		if err := poll(t.Context(), ok); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	exists := func(name string) func() error {
		return func() error { _, err := os.Stat(filepath.Join(p.dir, name)); return err }
	}
	const more = 1 << 20 // A pipe takes 64 KiB.
	writes := submit(fmt.Sprintf("touch a; until test -e go; do sleep 0.05; done; head -c %d /dev/zero; touch written; exit 7", more), "")
	// Its timeout is over while the broker is away, or a moment before it.
	endless := submit("echo $$ >pid; mv pid endless; trap 'echo ended; touch ended; exit 4' TERM; while :; do sleep 0.05; done", "15s")
	wait("both run", func() error { return firstError(exists("a"), exists("endless")) })

	l.broker.stop()
	worker := rig.Find(l.runner.PID(), "runner-worker")
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wait("output is read", exists("written"))
	wait("the timeout is kept", exists("ended"))

	if err := l.broker.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{writes: "failed 7", endless: "timeout 4"} {
		wait("the row of "+want, func() error {
			row, err := l.client().Get(t.Context(), id)
			if err == nil && !row.Sealed {
				err = fmt.Errorf("%s is %s", id, row.Status)
			}
			if err != nil {
				return err
			}
			code := int32(-1)
			if row.ExitCode != nil {
				code = *row.ExitCode
			}
			got := fmt.Sprintf("%s %d", row.Status, code)
			if got != want || row.Complete == nil || !*row.Complete {
				return errFinal{fmt.Errorf("%s, missing: %v", got, row.Missing)}
			}
			return nil
		})
	}
	failed = false
}

func firstError(checks ...func() error) error {
	for _, ok := range checks {
		if err := ok(); err != nil {
			return err
		}
	}
	return nil
}
