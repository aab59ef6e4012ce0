//go:build linux

package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// superVariable makes the test binary a supervisor whose workers play what it says. Its value for them is in workerVariable: "steady", or a
// folder, in which the first worker starts a process and dies, and all others die at once; or hangsIn and a directory that does not answer, in
// which every worker starts one.
const superVariable, workerVariable, hangsIn = "VERBATIM_TEST_SUPERVISOR", "VERBATIM_TEST_WORKER", "hangs:"

func playSupervisor(plays string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	program, err := os.Executable()
	if err != nil {
		return complain(err)
	}
	err = supervisor.Run(ctx, supervisor.Config{
		Program: program, Worker: []string{"worker"}, Environment: []string{workerVariable + "=" + plays, "PATH=" + os.Getenv("PATH")},
		Stderr: os.Stderr, StopTime: 300 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Ready: func() { fmt.Println("ready") },
	})
	if err != nil {
		return complain(err)
	}
	return 0
}

func playWorker(plays string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	conn, err := protocol.New(os.NewFile(supervisor.WorkerSocket, "socket"))
	if err != nil {
		return complain(err)
	}
	c := supervisor.NewClient(conn)
	directory, hangs := strings.CutPrefix(plays, hangsIn)
	if hangs {
		command := shell("exec sleep 600")
		command.Directory = directory
		go func() { _, _ = c.Start("1", filepath.Join(directory, "attempt"), command, nil) }()
	} else if plays != "steady" {
		if _, err := os.Stat(filepath.Join(plays, protocol.StartingFile)); err == nil {
			return 1
		}
		if _, err := c.Start("1", plays, shell("echo $$ >"+plays+"/pid; exec sleep 600"), nil); err != nil {
			return complain(err)
		}
	}
	if err := c.Ready(); err != nil {
		return complain(err)
	}
	if plays != "steady" && !hangs {
		return 1
	}
	fmt.Fprintln(os.Stderr, "worker", os.Getpid())
	<-term
	return 0
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// super is a supervisor in a process of its own.
type super struct {
	*exec.Cmd
	ready, log *bufio.Scanner
}

func startSupervisor(t *testing.T, program, plays string) super {
	t.Helper()
	s := super{Cmd: exec.CommandContext(context.WithoutCancel(t.Context()), program)}
	s.Env = append(os.Environ(), superVariable+"="+plays)
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	log, err := s.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.ready, s.log = bufio.NewScanner(out), bufio.NewScanner(log)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = s.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		_ = s.Process.Kill() // It has ended, if all is well.
		_ = s.Wait()
	})
	return s
}

// line is the rest of the next line of the log that begins so.
func (s super) line(t *testing.T, begins string) string {
	t.Helper()
	for s.log.Scan() {
		t.Log(s.log.Text())
		if rest, ok := strings.CutPrefix(s.log.Text(), begins); ok {
			return rest
		}
	}
	t.Fatalf("the supervisor ended, and did not say %q", begins)
	return ""
}

// A program whose file is removed or half written while it runs, as when it is being replaced, does not keep the next worker from its work.
func TestAWorkerIsStartedWithoutTheFile(t *testing.T) {
	t.Parallel()
	for _, becomes := range []string{"gone", "half written"} {
		t.Run(becomes, func(t *testing.T) {
			t.Parallel()
			self, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(t.TempDir(), "program")
			// A process that another test starts meanwhile would inherit the open file, which then cannot be executed (ETXTBSY).
			syscall.ForkLock.RLock()
			err = os.WriteFile(program, self, 0o700)
			syscall.ForkLock.RUnlock()
			if err != nil {
				t.Fatal(err)
			}
			s := startSupervisor(t, program, "steady")
			first := s.line(t, "worker ")
			if err := os.Remove(program); err != nil {
				t.Fatal(err)
			}
			if becomes == "half written" {
				if err := os.WriteFile(program, self[:1000], 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var pid int
			if _, err := fmt.Sscan(first, &pid); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if second := s.line(t, "worker "); second == first {
				t.Errorf("worker %s again", second)
			}
			if err := s.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for s.log.Scan() { // Wait closes what is not read.
			}
			if err := s.Wait(); err != nil {
				t.Errorf("it did not stop cleanly: %v", err)
			}
		})
	}
}

// A supervisor that is told to stop does, though every worker fails: what runs does not run on without anybody.
func TestNoWorkerStops(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s := startSupervisor(t, "/proc/self/exe", folder)
	if !s.ready.Scan() {
		t.Fatal("no worker was ready")
	}
	var pid int
	eventually(t, "the process says its number", func() bool {
		text, err := os.ReadFile(filepath.Join(folder, "pid"))
		n, _ := fmt.Sscan(string(text), &pid)
		return err == nil && n == 1 && strings.HasSuffix(string(text), "\n")
	})
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.line(t, "what runs is killed, since no worker ends it: worker ")
	if err := s.Wait(); err == nil {
		t.Error("it says that it stopped cleanly")
	}
	eventually(t, "the process ends", func() bool { return !lives(pid) })
}
