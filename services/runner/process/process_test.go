package process_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"verbatim.dev/services/runner/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start(process.Spec{Argv: []string{"sh", "-c", script}, Environment: map[string]string{"PATH": "/usr/bin:/bin"}, Directory: t.TempDir(), Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.SignalGroup(syscall.SIGKILL)
		p.Release()
		for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
			_ = f.Close()
		}
	})
	return p
}

// The number stays ours from the end to Release: no stranger can get it, and the rest of the group gets signals.
func TestNumberIsOursUntilRelease(t *testing.T) {
	t.Parallel()
	p := start(t, `sh -c 'echo child; exec sleep 600' & read x; exit 9`)
	line := make([]byte, 6)
	if _, err := io.ReadFull(p.Stdout, line); err != nil || string(line) != "child\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = p.Stdin.WriteString("go\n")
	exit, err := p.Wait()
	if err != nil || exit.Code != 9 || exit.Signal != 0 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID)); err != nil || !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the ended process is no zombie any more: %s %v", stat, err)
	}
	if others, err := p.GroupHasOthers(); err != nil || !others {
		t.Errorf("the child is in the group: %v, %v", others, err)
	}
	if err := p.SignalGroup(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(p.Stdout); err != nil || len(rest) != 0 { // Its end: the child held the pipe.
		t.Errorf("%q, %v", rest, err)
	}
	p.Release()
	if err := p.SignalGroup(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal after Release: %v", err)
	}
	if err := syscall.Kill(p.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("not reaped: %v", err)
	}
	p.Release() // Twice is once.
}

func TestReleaseEndsWait(t *testing.T) {
	t.Parallel()
	p := start(t, `sleep 600`)
	waited := make(chan error, 1)
	go func() {
		_, err := p.Wait()
		waited <- err
	}()
	p.Release()
	if err := <-waited; !errors.Is(err, os.ErrClosed) {
		t.Errorf("wait says %v", err)
	}
	_ = syscall.Kill(-p.PID, syscall.SIGKILL)
	if _, err := syscall.Wait4(p.PID, nil, 0, nil); err != nil {
		t.Error(err)
	}
}

// Waiting for many costs no thread each.
func TestWaitingTakesNoThreads(t *testing.T) {
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	const n = 100
	before := threads()
	var waits sync.WaitGroup
	var list []*process.Process
	for range n {
		p := start(t, `echo up; read x`)
		list = append(list, p)
		waits.Go(func() {
			if exit, err := p.Wait(); err != nil || exit.Code != 0 {
				t.Errorf("exit %+v, %v", exit, err)
			}
		})
		if _, err := io.ReadFull(p.Stdout, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
	}
	if grew := threads() - before; grew > n/4 {
		t.Errorf("%d threads more for %d processes", grew, n)
	}
	for _, p := range list {
		_, _ = p.Stdin.WriteString("go\n")
	}
	waits.Wait()
}

func TestUsageIsTheProcesss(t *testing.T) {
	t.Parallel()
	p := start(t, `i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done`)
	exit, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if used := exit.Usage.GetUserTime().AsDuration(); used <= 0 || used > exit.EndedAt.Sub(p.StartedAt)*2 {
		t.Errorf("user time %s in %s", used, exit.EndedAt.Sub(p.StartedAt))
	}
}

func TestCoreDumpIsSeen(t *testing.T) {
	t.Parallel()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, `ulimit -c unlimited; kill -ABRT $$`)
	exit, err := p.Wait()
	if err != nil || exit.Signal != syscall.SIGABRT {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	// With a relative pattern the core lands in the working directory, and the kernel says that it wrote one.
	if name := strings.TrimSpace(string(pattern)); name == "core" && !exit.CoreDumped {
		t.Errorf("core pattern %q, exit %+v", name, exit)
	}
}
