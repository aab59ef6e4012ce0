//go:build linux

package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// hostVariable makes the test binary a host that serves the socket it was given.
const hostVariable = "VERBATIM_TEST_HOST"

func TestMain(m *testing.M) {
	supervisor.SetFind(findSlowly)
	if os.Getenv(hostVariable) != "" {
		os.Exit(playHost())
	}
	if plays := os.Getenv(superVariable); plays != "" {
		os.Exit(playSupervisor(plays))
	}
	if plays := os.Getenv(workerVariable); plays != "" {
		os.Exit(playWorker(plays))
	}
	goleak.VerifyTestMain(m)
}

func playHost() int {
	c, err := protocol.New(os.NewFile(supervisor.WorkerSocket, "socket"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	h := supervisor.NewHost(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	_ = h.Serve(c, nil) // It ends with the worker.
	h.Close()
	return 0
}

// newHost is a host that is closed at the end.
func newHost(t *testing.T) *supervisor.Host {
	t.Helper()
	h := supervisor.NewHost(slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(h.Close)
	return h
}

// attach is a worker of a host. die is its end, as the kernel would bring it about.
func attach(t *testing.T, h *supervisor.Host) (c *supervisor.Client, die func()) {
	t.Helper()
	ours, theirs, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	served, err := protocol.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = h.Serve(served, nil) })
	c = supervisor.NewClient(ours)
	die = sync.OnceFunc(func() {
		_ = c.Close()
		serving.Wait()
		_ = served.Close()
	})
	t.Cleanup(die)
	return c, die
}

func shell(script string) protocol.Command {
	return protocol.Command{Argv: []string{"sh", "-c", script}, Environment: map[string]string{"PATH": os.Getenv("PATH")}, Directory: "/"}
}

func start(t *testing.T, c *supervisor.Client, attempt, folder, script string) *supervisor.Process {
	t.Helper()
	p, err := c.Start(attempt, folder, shell(script), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hangUp(p) })
	return p
}

// hangUp closes a worker's copies, as its death does.
func hangUp(p *supervisor.Process) {
	for _, f := range []*os.File{p.Stdout, p.Stderr, p.Stdin, p.Document} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func wait(t *testing.T, p *supervisor.Process) process.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func read(t *testing.T, f *os.File) string {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readLine reads up to the end of a line and no further.
func readLine(t *testing.T, f *os.File) (line string) {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(patience))
	for b := make([]byte, 1); !strings.HasSuffix(line, "\n"); line += string(b) {
		if _, err := f.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	return line
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// A process is started, says what it says, and its end is written down before it is told.
func TestStartToEnd(t *testing.T) {
	t.Parallel()
	c, _ := attach(t, newHost(t))
	folder := t.TempDir()
	p := start(t, c, "a/1", folder, `echo out; echo err >&2; exit 7`)
	if out, err := read(t, p.Stdout), read(t, p.Stderr); out != "out\n" || err != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	if exit := wait(t, p); exit.Code != 7 || exit.Usage == nil {
		t.Errorf("%+v", exit)
	}
	var record *protocol.Record
	var exit *protocol.Exit
	if err := errors.Join(supervisor.ReadRecord(filepath.Join(folder, protocol.StartingFile), &record), supervisor.ReadRecord(filepath.Join(folder, protocol.ExitFile), &exit)); err != nil {
		t.Fatal(err)
	}
	if record.PID != p.PID || !record.StartedAt.Equal(p.StartedAt) || exit.Code != 7 {
		t.Errorf("%+v, %+v", record, exit)
	}
	// Until it is released it is a zombie, so that nobody else gets its number.
	if err := syscall.Kill(p.PID, 0); err != nil {
		t.Errorf("the number is free already: %v", err)
	}
	p.Release()
	if err := syscall.Kill(p.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it is not reaped: %v", err)
	}
	if err := p.SignalGroup(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a number that is given back can be signalled: %v", err)
	}
}

// Whoever asks again for an attempt gets the process that is there, or is told of the one that was.
func TestStartedOnce(t *testing.T) {
	t.Parallel()
	c, _ := attach(t, newHost(t))
	folder := t.TempDir()
	first := start(t, c, "a/1", folder, `echo $$ >>`+folder+`/starts; exec sleep 600`)
	again := start(t, c, "a/1", folder, `echo $$ >>`+folder+`/starts; exec sleep 600`)
	if first.PID != again.PID {
		t.Errorf("process %d, then %d", first.PID, again.PID)
	}
	if err := again.SignalGroup(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, again); exit.Signal != syscall.SIGKILL {
		t.Errorf("%+v", exit)
	}
	again.Release()
	var gone *supervisor.GoneError
	if _, err := c.Start("a/1", folder, shell(`echo twice`), nil); !errors.As(err, &gone) || !errors.Is(err, supervisor.ErrEnded) {
		t.Fatalf("a third start: %v", err)
	}
	if gone.Record == nil || gone.Record.PID != first.PID || gone.Exit == nil || gone.Exit.Signal != syscall.SIGKILL {
		t.Errorf("what is known of it: %+v, %+v", gone.Record, gone.Exit)
	}
	// It may have been killed before it came to write.
	if starts, err := os.ReadFile(folder + "/starts"); (err != nil && !errors.Is(err, os.ErrNotExist)) || strings.Count(string(starts), "\n") > 1 {
		t.Errorf("starts: %q, %v", starts, err)
	}
}

// A supervisor that was killed in the middle of a start leaves an attempt that nobody starts any more.
func TestKilledWhileStarting(t *testing.T) {
	t.Parallel()
	c, _ := attach(t, newHost(t))
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, protocol.StartingFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var gone *supervisor.GoneError
	_, err := c.Start("a/1", folder, shell(`echo twice`), nil)
	if !errors.As(err, &gone) || gone.Record != nil || gone.Exit != nil {
		t.Errorf("%v", err)
	}
}

// A process that cannot be started is the same answer for ever, also from a supervisor that comes later.
func TestStartFails(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for range 2 {
		c, die := attach(t, newHost(t))
		for range 2 {
			var failed *process.StartError
			_, err := c.Start("a/1", folder, protocol.Command{Argv: []string{"no-such-program"}, Directory: "/"}, nil)
			if !errors.As(err, &failed) || failed.Reason != executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND {
				t.Errorf("%v", err)
			}
		}
		die()
	}
	// A folder that is not there is no verdict on the attempt.
	c, _ := attach(t, newHost(t))
	var failed *process.StartError
	if _, err := c.Start("b/1", folder+"/none", shell(`true`), nil); err == nil || errors.As(err, &failed) || errors.Is(err, supervisor.ErrEnded) {
		t.Errorf("without a folder: %v", err)
	}
}

// A second worker gets the pipes with what the first one did not read, the rest of the document for standard input, and the exit.
func TestSecondWorkerAdopts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	first, die := attach(t, h)
	folder := t.TempDir()
	document, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := document.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := document.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	p, err := first.Start("a/1", folder, shell(`read a; echo got $a; read b; echo got $b; echo $(cat) rest; exit 3`), document)
	if err != nil {
		t.Fatal(err)
	}
	_ = document.Close()
	feed := func(p *supervisor.Process, n int64) {
		t.Helper()
		if _, err := io.CopyN(p.Stdin, p.Document, n); err != nil {
			t.Fatal(err)
		}
	}
	feed(p, 4)
	if line := readLine(t, p.Stdout); line != "got one\n" {
		t.Errorf("%q", line)
	}
	die()
	hangUp(p)

	second, _ := attach(t, h)
	q, err := second.Start("a/1", folder, shell(`echo twice`), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(q)
	if q.PID != p.PID || q.Stdin == nil {
		t.Fatalf("process %d, then %d, with stdin: %v", p.PID, q.PID, q.Stdin != nil)
	}
	feed(q, 4)
	_, _ = q.Stdin.Close(), q.Document.Close()
	q.StdinDone()
	if out := read(t, q.Stdout); out != "got two\nrest\n" {
		t.Errorf("%q", out)
	}
	if exit := wait(t, q); exit.Code != 3 {
		t.Errorf("%+v", exit)
	}
	q.Release()
}

// An end that nobody was there for is told to whoever comes next.
func TestEndWithoutWorker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	first, die := attach(t, h)
	folder := t.TempDir()
	p := start(t, first, "a/1", folder, `echo last words; exit 4`)
	die()
	hangUp(p)
	eventually(t, "the exit is written down", func() bool {
		_, err := os.Stat(filepath.Join(folder, protocol.ExitFile))
		return err == nil
	})
	second, dieToo := attach(t, h)
	q := start(t, second, "a/1", folder, `echo twice`)
	if out := read(t, q.Stdout); out != "last words\n" {
		t.Errorf("%q", out)
	}
	if exit := wait(t, q); exit.Code != 4 {
		t.Errorf("%+v", exit)
	}
	dieToo()
	hangUp(q)
	// Who comes later knows it before anything else can happen, such as a timeout that is over by now.
	third, _ := attach(t, h)
	r := start(t, third, "a/1", folder, `echo twice`)
	defer hangUp(r)
	if exit, err, known := r.Ended(); !known || err != nil || exit.Code != 4 {
		t.Errorf("%+v, %v, known: %v", exit, err, known)
	}
	r.Release()
}

// Idle says when the last process was released, and Close kills what was not.
func TestIdleAndClose(t *testing.T) {
	t.Parallel()
	h := supervisor.NewHost(slog.New(slog.NewTextHandler(t.Output(), nil)))
	c, die := attach(t, h)
	p := start(t, c, "a/1", t.TempDir(), `exec sleep 600`)
	idle := h.Idle()
	select {
	case <-idle:
		t.Error("idle with a process")
	default:
	}
	q := start(t, c, "b/1", t.TempDir(), `exec sleep 600`)
	p.Release() // It lives: it is let go and not killed.
	if err := syscall.Kill(p.PID, 0); err != nil {
		t.Errorf("a released process is gone: %v", err)
	}
	_ = syscall.Kill(p.PID, syscall.SIGKILL)
	q.Release()
	_ = syscall.Kill(q.PID, syscall.SIGKILL)
	select {
	case <-idle:
	case <-time.After(patience):
		t.Error("not idle without a process")
	}
	r := start(t, c, "c/1", t.TempDir(), `exec sleep 600`)
	die()
	h.Close()
	eventually(t, "the process that was not released is gone", func() bool { return !lives(r.PID) })
}

// lives reports whether a process is there and no zombie.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// After 500 attempts, of every kind, neither the worker nor the supervisor has a descriptor more than before. It
// runs alone: it counts what belongs to the whole test process.
func TestNothingIsLeftOf500(t *testing.T) {
	ours, theirs, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := exec.CommandContext(t.Context(), self)
	host.Env, host.Stderr, host.ExtraFiles = append(os.Environ(), hostVariable+"=1"), os.Stderr, []*os.File{theirs}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	c := supervisor.NewClient(ours)
	round := func(i int) {
		folder := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		attempt := fmt.Sprintf("%d/1", i)
		switch i % 5 {
		case 0:
			if _, err := c.Start(attempt, folder, protocol.Command{Argv: []string{"no-such-program"}, Directory: "/"}, nil); err == nil {
				t.Error("it was started")
			}
		case 1: // With a document that nobody reads.
			document, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.Start(attempt, folder, shell(`exit 0`), document)
			_ = document.Close()
			if err != nil {
				t.Fatal(err)
			}
			wait(t, p)
			hangUp(p)
			p.Release()
		case 2: // Found again.
			p, q := start(t, c, attempt, folder, `exec sleep 600`), start(t, c, attempt, folder, `exec sleep 600`)
			_ = q.SignalGroup(syscall.SIGKILL)
			wait(t, q)
			hangUp(p)
			hangUp(q)
			q.Release()
			p.Release()
		case 3: // Let go while it lives.
			p := start(t, c, attempt, folder, `exec sleep 600`)
			hangUp(p)
			p.Release()
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		default:
			p := start(t, c, attempt, folder, `echo x; exit 1`)
			wait(t, p)
			hangUp(p)
			p.Release()
		}
	}
	for i := range 20 {
		round(i) // Whatever is opened once is open now.
	}
	worker, super := descriptors(t, os.Getpid()), descriptors(t, host.Process.Pid)
	for i := range 500 {
		round(20 + i)
	}
	eventually(t, "both have as many descriptors as before", func() bool {
		return descriptors(t, os.Getpid()) <= worker && descriptors(t, host.Process.Pid) <= super
	})
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := host.Wait(); err != nil {
		t.Error(err)
	}
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
