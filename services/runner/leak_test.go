package runner_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// After any way to end, descriptors, children and directories are what they were. It runs alone: it counts what belongs
// to the whole test process.
func TestNothingIsLeftBehind(t *testing.T) {
	f := newRunner(t, nil)
	round := func() {
		missing := &executionv1.Prepared{Argv: []string{"no-such-program"}, Stdin: []byte("x")}
		unread := shell(`exit 1`)
		unread.Stdin = noise(7, 1<<20)
		read := shell(`cat`)
		read.Stdin = noise(8, 1<<20)
		ids := []string{f.start(t, missing), f.start(t, unread), f.start(t, read), f.start(t, shell(`kill -9 $$`))}
		endless := f.start(t, shell(`echo up; sleep 600`))
		f.log.awaitOutput(t, endless, stdout, "up")
		f.Cancel(endless, "", "")
		for _, id := range append(ids, endless) {
			f.log.tell(t, id)
		}
		eventually(t, "all attempts are over", func() bool { return len(f.Running()) == 0 })
	}
	round() // Whatever is opened once is open now.
	before := descriptors(t)
	for range 20 {
		round()
	}
	if after := descriptors(t); len(after) > len(before) {
		t.Errorf("%d descriptors became %d: %v", len(before), len(after), after)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("children cannot be listed: %v", err)
	}
	for _, task := range tasks {
		if children, err := os.ReadFile(task); err == nil && len(strings.Fields(string(children))) > 0 {
			t.Errorf("children that nobody reaped: %s", children)
		}
	}
}

func descriptors(t *testing.T) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open = append(open, target)
		}
	}
	return open
}
