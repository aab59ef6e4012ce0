package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

// daemon is a process that leaves another one behind, which has stdout and writes what the script says; it goes on with each line of
// the fifo, and its number is in the file beside that.
func daemon(fifo, script string) *executionv1.Prepared {
	return whole(shell(fmt.Sprintf(`echo parent
setsid sh -c 'echo $$ >%[1]s.pid; exec 3<>%[1]s; %[2]s' </dev/null 2>/dev/null &
while [ ! -s %[1]s.pid ]; do sleep 0.01; done; exit 3`, fifo, script)))
}

// quick makes the drain short.
func quick(c *runner.Config) { c.DrainTime = 50 * time.Millisecond }

// awaitSeals waits for the nth seal and checks all that the attempt says.
func (l *log) awaitSeals(t *testing.T, execution string, n int) story {
	t.Helper()
	seen := map[uint64]bool{}
	l.await(t, execution, fmt.Sprintf("seal %d", n), func(e events.Event) bool {
		if e.Type == events.TypeOutputSealed {
			seen[e.Sequence] = true
		}
		return len(seen) == n
	})
	s := l.tell(t, execution)
	if seals := all[*executionv1.OutputSealed](s); len(seals) != n {
		t.Fatalf("%d seals, want %d:\n%s", len(seals), n, describe(s.facts))
	}
	return s
}

// killDaemon ends what daemon left behind.
func killDaemon(t *testing.T, fifo string) {
	t.Helper()
	text, _ := os.ReadFile(fifo + ".pid")
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatalf("no number of the daemon: %v", err)
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	eventually(t, "the daemon is gone", func() bool { return !alive(pid) })
}

// What another process writes after the end is in the log, and counted by a second seal; it takes no slot meanwhile.
func TestLateOutput(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	f := newRunner(t, func(c *runner.Config) { quick(c); c.Slots = 1 })
	id := f.start(t, daemon(fifo, `read x <&3; echo late; echo more; read x <&3; echo last`))
	s := f.log.awaitSeals(t, id, 1)
	if seal := s.seals[stdout]; !seal.GetPipeStillHeld() || seal.GetCapturedBytes() != 7 || s.seals[stderr].GetPipeStillHeld() {
		t.Errorf("first seal: %v", s.seals)
	}
	// The slot is free, and nothing of it is said to run.
	if got := string(f.log.tell(t, f.start(t, shell(`echo other`))).output[stdout]); got != "other\n" {
		t.Errorf("stdout %q", got)
	}
	eventually(t, "nothing runs", func() bool {
		return len(f.Running()) == 0 && metric(t, f, "verbatim_runner_running") == 0 && metric(t, f, "verbatim_runner_late") == 1
	})
	writeFIFO(t, fifo, "go\n")
	f.log.awaitOutput(t, id, stdout, "late\nmore\n")
	writeFIFO(t, fifo, "go\n")
	s = f.log.awaitSeals(t, id, 2)
	if got := string(s.output[stdout]); got != "parent\nlate\nmore\nlast\n" {
		t.Errorf("stdout %q", got)
	}
	if s.seals[stdout].GetPipeStillHeld() || one[*executionv1.ProcessExited](t, s).GetExitCode() != 3 || len(signals(s)) > 0 {
		t.Errorf("second seal: %v; %s", s.seals[stdout], describe(s.facts))
	}
	eventually(t, "nothing is listened to", func() bool { return metric(t, f, "verbatim_runner_late") == 0 })
	if left, err := os.ReadDir(f.data + "/attempts"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// The listening ends when it is told to, when a cancel asks for it, and when the runner stops. What the pipe holds then is kept, who
// holds it is not touched.
func TestLateOutputEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(f fixture, id string){
		"cancel": func(f fixture, id string) { f.Cancel(id, "somebody", "enough") },
		"stop":   func(f fixture, _ string) { _ = f.Stop(context.Background()) },
		"time":   nil,
		"bytes":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fifo := mkfifo(t)
			f := newRunner(t, func(c *runner.Config) {
				switch quick(c); name {
				case "time":
					c.LateTime = 5 * time.Second
				case "bytes":
					c.LateBytes = 5
				}
			})
			id := f.start(t, daemon(fifo, `read x <&3; echo late; exec sleep 600`))
			defer killDaemon(t, fifo)
			f.log.awaitSeals(t, id, 1)
			writeFIFO(t, fifo, "go\n")
			f.log.awaitOutput(t, id, stdout, "late\n")
			if end != nil {
				end(f, id)
			}
			s := f.log.awaitSeals(t, id, 2)
			if got := string(s.output[stdout]); got != "parent\nlate\n" || !s.seals[stdout].GetPipeStillHeld() || len(signals(s)) > 0 {
				t.Errorf("stdout %q, %v, signals %v", got, s.seals[stdout], signals(s))
			}
		})
	}
}

// Nothing came late and it is still held: there is nothing to say.
func TestNothingComesLate(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	f := newRunner(t, func(c *runner.Config) { quick(c); c.LateTime = 50 * time.Millisecond })
	id := f.start(t, daemon(fifo, `exec sleep 600`))
	defer killDaemon(t, fifo)
	f.log.awaitSeals(t, id, 1)
	eventually(t, "the folder is gone", func() bool {
		left, err := os.ReadDir(f.data + "/attempts")
		return err == nil && len(left) == 0
	})
	f.log.awaitSeals(t, id, 1)
}

// Only as many as there are slots are listened to.
func TestLateOutputOfTooMany(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { quick(c); c.Slots = 1 })
	var fifos, ids []string
	for range 2 {
		fifo := mkfifo(t)
		id := f.start(t, daemon(fifo, `read x <&3; echo late`))
		f.log.awaitSeals(t, id, 1)
		fifos, ids = append(fifos, fifo), append(ids, id)
	}
	writeFIFO(t, fifos[0], "go\n")
	f.log.awaitSeals(t, ids[0], 2)
	killDaemon(t, fifos[1])
	f.log.awaitSeals(t, ids[1], 1)
}

// What comes late has the limit of its stream anew: its own beginning and end are published, and the second seal lists both gaps.
func TestLateOutputHasALimit(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	f := newRunner(t, quick)
	spec := daemon(fifo, `read x <&3; printf %04000d 0; echo late`)
	spec.Argv[2] = "printf %04000d 0; " + spec.Argv[2]
	spec.OutputLimit = &executionv1.OutputLimit{HeadBytes: 100, TailBytes: 50}
	id := f.start(t, spec)
	first := f.log.awaitSeals(t, id, 1).seals[stdout]
	writeFIFO(t, fifo, "go\n")
	s := f.log.awaitSeals(t, id, 2)
	for seal, want := range map[*executionv1.StreamSeal]string{first: " 100-3957", s.seals[stdout]: " 100-3957 4107-7962"} {
		got := ""
		for _, r := range seal.GetElided() {
			got += fmt.Sprintf(" %d-%d", r.GetStart(), r.GetEnd())
		}
		if got != want {
			t.Errorf("%s is left out, not%s", got, want)
		}
	}
	if got := s.output[stdout]; len(got) != 300 || !bytes.HasSuffix(got, []byte("0late\n")) {
		t.Errorf("stdout has %d bytes: %q", len(got), got)
	}
}

// The worker is killed while it listens, once by a supervisor that becomes a new version of itself, and a part is written while there
// is none.
func TestWorkerKilledWhileListening(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	s := newStage(t, "")
	text := fmt.Sprintf("%x", noise(9, 3000))
	script := "while read n <&3; do head -c $n; done <" + fifo + ".text"
	if err := os.WriteFile(fifo+".text", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	id := s.start(t, daemon(fifo, script))
	s.log.awaitSeals(t, id, 1)
	for i := range 3 {
		writeFIFO(t, fifo, "1000\n")
		s.log.awaitOutput(t, id, stdout, text[:2000*i+1000])
		worker := s.worker()
		if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		writeFIFO(t, fifo, "1000\n")
		if i == 2 {
			killDaemon(t, fifo)
		}
		victim, signal := worker, syscall.SIGKILL
		if i == 1 {
			victim, signal = s.main.Process.Pid, syscall.SIGUSR2
		}
		if err := syscall.Kill(victim, signal); err != nil {
			t.Fatal(err)
		}
	}
	story := s.log.awaitSeals(t, id, 2)
	if got := string(story.output[stdout]); !strings.HasPrefix("parent\n"+text, got) || len(got) < 5007 || story.seals[stdout].GetPipeStillHeld() {
		t.Errorf("stdout has %d bytes, not the ones that were written: %v", len(got), story.seals[stdout])
	}
	s.same(t, id)
}

// The supervisor is killed with the worker: what came late until then is sealed by the next one, which does not claim that it was all.
func TestSupervisorKilledWhileListening(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	s := newStage(t, "")
	id := s.start(t, daemon(fifo, `read x <&3; echo late; exec sleep 600`))
	defer killDaemon(t, fifo)
	s.log.awaitSeals(t, id, 1)
	writeFIFO(t, fifo, "go\n")
	s.log.awaitOutput(t, id, stdout, "late\n")
	worker := s.worker()
	_ = syscall.Kill(s.main.Process.Pid, syscall.SIGSTOP)
	_ = syscall.Kill(worker, syscall.SIGKILL)
	_ = s.main.Process.Kill()
	<-s.ended
	s.startSupervisor(t, "")
	story := s.log.awaitSeals(t, id, 2)
	if got := string(story.output[stdout]); got != "parent\nlate\n" || !story.seals[stdout].GetPipeStillHeld() {
		t.Errorf("stdout %q, %v", got, story.seals[stdout])
	}
}

// A secret of which the beginning comes before the seal and the rest after it is masked as a whole: what may be a beginning is left out of
// the seal and counts as late.
func TestLateOutputMasksWhatBeganBeforeTheSeal(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	f := newRunner(t, quick)
	spec := daemon(fifo, `read x <&3; printf sesame; read x <&3; printf " end open-sesame over"`)
	spec.Argv[len(spec.Argv)-1] = strings.Replace(spec.GetArgv()[len(spec.GetArgv())-1], "echo parent", `printf "parent open-"`, 1)
	spec.Secrets = sealed(t, f, map[string]string{"TOKEN": "open-sesame"})
	id := f.start(t, spec)
	s := f.log.awaitSeals(t, id, 1)
	if seal := s.seals[stdout]; !seal.GetPipeStillHeld() || seal.GetCapturedBytes() != 7 || seal.GetPublishedBytes() != 7 {
		t.Errorf("first seal: %v", seal)
	}
	writeFIFO(t, fifo, "go\n")
	f.log.awaitOutput(t, id, stdout, "***********")
	writeFIFO(t, fifo, "go\n")
	s = f.log.awaitSeals(t, id, 2)
	if got, want := string(s.output[stdout]), "parent *********** end *********** over"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if seal := s.seals[stdout]; seal.GetMaskedRanges() != 2 || seal.GetMaskedBytes() != 22 || seal.GetPipeStillHeld() {
		t.Errorf("second seal: %v", seal)
	}
}

// What may be the beginning of a secret, and is not, is there when the other process has ended.
func TestLateOutputOfWhatIsNoSecret(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	f := newRunner(t, quick)
	spec := daemon(fifo, `read x <&3`)
	spec.Argv[len(spec.Argv)-1] = strings.Replace(spec.GetArgv()[len(spec.GetArgv())-1], "echo parent", `printf "parent open-"`, 1)
	spec.Secrets = sealed(t, f, map[string]string{"TOKEN": "open-sesame"})
	id := f.start(t, spec)
	if seal := f.log.awaitSeals(t, id, 1).seals[stdout]; !seal.GetPipeStillHeld() || seal.GetCapturedBytes() != 7 {
		t.Errorf("first seal: %v", seal)
	}
	writeFIFO(t, fifo, "go\n")
	s := f.log.awaitSeals(t, id, 2)
	if got, seal := string(s.output[stdout]), s.seals[stdout]; got != "parent open-" || seal.GetCapturedBytes() != 12 || seal.GetMaskedBytes() != 0 || seal.GetPipeStillHeld() {
		t.Errorf("stdout %q, %v", got, seal)
	}
}

// The same with a worker that is killed between the two: the next one knows what was held back.
func TestLateOutputMasksWhatBeganBeforeTheSealAndAKill(t *testing.T) {
	t.Parallel()
	fifo := mkfifo(t)
	s := newStage(t, "")
	var recipient []byte
	eventually(t, "public key", func() (there bool) {
		recipient, _ = os.ReadFile(filepath.Join(s.data, "key.pub"))
		return len(recipient) > 0
	})
	spec := daemon(fifo, `read x <&3; printf "sesame over"`)
	spec.Argv[len(spec.Argv)-1] = strings.Replace(spec.GetArgv()[len(spec.GetArgv())-1], "echo parent", `printf "parent open-"`, 1)
	spec.Secrets = sealedFor(t, strings.TrimSpace(string(recipient)), map[string]string{"TOKEN": "open-sesame"})
	id := s.start(t, spec)
	if seal := s.log.awaitSeals(t, id, 1).seals[stdout]; !seal.GetPipeStillHeld() || seal.GetCapturedBytes() != 7 {
		t.Errorf("first seal: %v", seal)
	}
	if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	writeFIFO(t, fifo, "go\n")
	story := s.log.awaitSeals(t, id, 2)
	if got, seal := string(story.output[stdout]), story.seals[stdout]; got != "parent *********** over" || seal.GetMaskedRanges() != 1 || seal.GetMaskedBytes() != 11 {
		t.Errorf("stdout %q, %v", got, seal)
	}
}
