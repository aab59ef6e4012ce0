package runner_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// The worker is killed again and again, at random moments, while processes write known bytes to both streams. As long as
// there are kills to come, a new execution takes the place of each that is over.
func TestKillLoop(t *testing.T) {
	const running, kills, size = 16, 30, 400_000
	s := newStage(t, "")
	want := make(map[string]int)
	var open []string
	begin := func() string {
		i := len(want) % 90
		spec := child(fmt.Sprintf("slow-noise:%d:%d", size, i))
		spec.Stdin = noise(byte(i), 100_000+i)
		id := s.start(t, spec)
		want[id] = i
		return id
	}
	for range running {
		open = append(open, begin())
	}
	last := 0
	for kill := range kills {
		var pid int
		eventually(t, "another worker is there", func() bool {
			pid = s.worker()
			return pid != 0 && pid != last
		})
		if kill%3 == 0 { // In the middle of its start, perhaps.
			<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond)
		} else { // At work, however slow the machine is.
			facts := s.log.count() + 1 + rand.IntN(40)
			eventually(t, "the worker publishes", func() bool { return s.log.count() >= facts })
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("worker is gone already: %v", err)
		}
		last = pid
		for i, id := range open {
			if s.sealed(id) {
				open[i] = begin()
			}
		}
	}
	for id, i := range want {
		s.wants(t, id, i, size)
	}
	t.Logf("%d kills over %d attempts", kills, len(want))
}

// count is how many facts were published, resends too.
func (l *log) count() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ids := range l.calls {
		n += len(ids)
	}
	return n
}

// wants checks one attempt of the kill loop.
func (s *stage) wants(t *testing.T, id string, code, size int) {
	t.Helper()
	story := s.log.tell(t, id)
	if got := one[*executionv1.ProcessExited](t, story).GetExitCode(); got != int32(code) {
		t.Errorf("%s: exit code %d, want %d", id, got, code)
	}
	for seed, stream := range map[byte]executionv1.Stream{1: stdout, 2: stderr} {
		if !bytes.Equal(story.output[stream], noise(seed, size)) {
			t.Errorf("%s: %s has %d bytes, not the ones that were written", id, stream, len(story.output[stream]))
		}
	}
	if n := len(all[*executionv1.ProcessStarted](story)); n != 1 {
		t.Errorf("%s: started %d times", id, n)
	}
	if n := len(all[*executionv1.StdinWriteFailed](story)); n != 0 {
		t.Errorf("%s: stdin was not taken whole", id)
	}
	s.same(t, id)
}

func (s *stage) sealed(id string) bool {
	facts := s.log.of(id)
	return len(facts) > 0 && facts[len(facts)-1].Type == events.TypeOutputSealed
}

// same checks that what came twice is the same fact, byte for byte.
func (s *stage) same(t *testing.T, id string) {
	t.Helper()
	seen := make(map[string]events.Event)
	for _, e := range s.log.of(id) {
		if first, again := seen[e.ID]; again && (!bytes.Equal(first.Payload, e.Payload) || first.Type != e.Type || !first.Time.Equal(e.Time)) {
			t.Errorf("%s came twice and differs:\n%v\n%v", e.ID, first, e)
		}
		seen[e.ID] = e
	}
}

// A kill between writing down the claim and the commit, and between the commit and the start: started exactly once.
func TestKilledWhileClaiming(t *testing.T) {
	for _, point := range []string{"before-commit", "after-commit"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, point)
			marks := filepath.Join(t.TempDir(), "starts")
			id := s.start(t, shell("echo x >>"+marks+"; echo done"))
			eventually(t, "the worker is at the point", func() bool {
				_, err := os.Stat(s.data + "/" + point)
				return err == nil
			})
			if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			story := s.log.tell(t, id)
			if text, err := os.ReadFile(marks); err != nil || string(text) != "x\n" {
				t.Errorf("starts: %q, %v", text, err)
			}
			if got := string(story.output[stdout]); got != "done\n" {
				t.Errorf("stdout %q", got)
			}
		})
	}
}

// The process ends while there is no worker: the next one says how.
func TestExitWhileWorkerIsDead(t *testing.T) {
	s := newStage(t, "")
	fifo := mkfifo(t)
	id := s.start(t, shell(`echo up; read x <`+fifo+`; echo last words; exit 9`))
	s.log.awaitOutput(t, id, stdout, "up")
	worker := s.worker()
	// Stopped, so that it takes nothing in; killed when the process is over.
	if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	writeFIFO(t, fifo, "go\n")
	eventually(t, "the exit is written down", func() bool {
		found, _ := filepath.Glob(s.data + "/attempts/*/exit")
		return len(found) == 1
	})
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	story := s.log.tell(t, id)
	if got := string(story.output[stdout]); got != "up\nlast words\n" || one[*executionv1.ProcessExited](t, story).GetExitCode() != 9 {
		t.Errorf("stdout %q", got)
	}
}

// A termination goes on where the killed worker left it: one TERM, then KILL.
func TestKilledBetweenTermAndKill(t *testing.T) {
	s := newStage(t, "")
	spec := child("ignore-term")
	spec.Timeout, spec.Grace = durationpb.New(5*time.Second), durationpb.New(2*time.Second)
	id := s.start(t, spec)
	s.log.awaitType(t, id, events.TypeTerminationStarted)
	if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	story := s.log.tell(t, id)
	if got := signals(story); strings.Join(got, " ") != "TERM KILL" {
		t.Errorf("signals %v", got)
	}
}

// The supervisor is killed: what was written is there, and the exit status is said to be unknown. A new
// supervisor takes work again. With the worker killed beside it, the same comes from the disk.
func TestSupervisorKilled(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("worker too %v", both), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, "")
			id := s.start(t, shell(`echo up; echo err >&2; exec sleep 600`))
			s.log.awaitOutput(t, id, stdout, "up")
			s.log.awaitOutput(t, id, stderr, "err")
			worker := s.worker()
			if both {
				_ = syscall.Kill(s.main.Process.Pid, syscall.SIGSTOP) // So that it does not start another one.
				_ = syscall.Kill(worker, syscall.SIGKILL)
			}
			_ = s.main.Process.Kill()
			<-s.ended
			s.startSupervisor(t, "")
			story := s.log.tell(t, id)
			if cause := one[*executionv1.WaitFailed](t, story).GetCause(); !strings.Contains(cause, "supervisor ended") {
				t.Errorf("cause %q", cause)
			}
			if out, err := string(story.output[stdout]), string(story.output[stderr]); out != "up\n" || err != "err\n" {
				t.Errorf("stdout %q, stderr %q", out, err)
			}
			next := s.start(t, shell(`echo again`))
			if got := string(s.log.tell(t, next).output[stdout]); got != "again\n" {
				t.Errorf("stdout %q", got)
			}
			pid := int(one[*executionv1.ProcessStarted](t, story).GetPid())
			eventually(t, "the process is gone", func() bool { return !alive(pid) })
			if both {
				if got := signals(story); strings.Join(got, " ") != "TERM" {
					t.Errorf("signals %v", got)
				}
			}
		})
	}
}

// Orphans of processes are reaped by the supervisor, and nothing else is.
func TestOrphansAreReaped(t *testing.T) {
	s := newStage(t, "")
	var ids []string
	for range 40 {
		ids = append(ids, s.start(t, shell(`for i in 1 2 3 4 5; do (sleep 0.2 >/dev/null 2>&1 &) ; done; exit 4`)))
	}
	for _, id := range ids {
		if got := one[*executionv1.ProcessExited](t, s.log.tell(t, id)).GetExitCode(); got != 4 {
			t.Errorf("exit code %d", got)
		}
	}
	eventually(t, "only the worker is left", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.main.Process.Pid))
		n := 0
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			n += len(strings.Fields(string(text)))
		}
		return n == 1
	})
}

// Supervisor and worker are killed together while processes run that write nothing and do not mind a TERM, one with its leader gone:
// the next runner ends them and their groups, says each signal, and touches nobody else.
func TestNobodyIsLeftToRunUnseen(t *testing.T) {
	t.Parallel()
	s := newStage(t, "")
	stubborn := shell(`trap "" TERM; (trap "" TERM; echo $$; sleep 600 >/dev/null 2>&1 & wait) & echo ready; while :; do sleep 0.1; done`)
	stubborn.Grace = durationpb.New(300 * time.Millisecond)
	id := s.start(t, stubborn)
	headless := s.start(t, shell(`sleep 600 & echo ready; wait`))
	s.log.awaitOutput(t, id, stdout, "ready")
	s.log.awaitOutput(t, headless, stdout, "ready")
	other := exec.Command("sleep", "600") // Somebody else's.
	other.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Process.Kill(); err != nil {
			t.Errorf("a process of somebody else is gone: %v", err)
		}
		_ = other.Wait()
	}()
	worker := s.worker()
	_ = syscall.Kill(s.main.Process.Pid, syscall.SIGSTOP)
	_ = syscall.Kill(worker, syscall.SIGKILL)
	_ = s.main.Process.Kill()
	<-s.ended
	var group []int
	for _, attempt := range []string{id, headless} {
		group = append(group, members("VERBATIM_EXECUTION_ID="+attempt)...)
	}
	if len(group) < 4 {
		t.Fatalf("only %v run", group)
	}
	for _, pid := range members("VERBATIM_EXECUTION_ID=" + headless) {
		if own, err := syscall.Getpgid(pid); err == nil && own == pid {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	s.startSupervisor(t, "")
	story := s.log.tell(t, id)
	if got := signals(story); strings.Join(got, " ") != "TERM KILL" {
		t.Errorf("signals %v", got)
	}
	if got := signals(s.log.tell(t, headless)); strings.Join(got, " ") != "TERM" {
		t.Errorf("without its leader: signals %v", got)
	}
	if cause := one[*executionv1.WaitFailed](t, story).GetCause(); !strings.Contains(cause, "supervisor ended") {
		t.Errorf("cause %q", cause)
	}
	for _, pid := range group {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
	}
}

// members are the processes with a variable in their environment.
func members(variable string) []int {
	var list []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if bytes.Contains(append([]byte{0}, environ...), append(append([]byte{0}, variable...), 0)) {
			n := 0
			_, _ = fmt.Sscan(e.Name(), &n)
			list = append(list, n)
		}
	}
	return list
}
