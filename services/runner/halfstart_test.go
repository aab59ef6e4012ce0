//go:build linux

package runner_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// A supervisor is killed around fork(2): it has handed out the pipes, there is a process, and nobody is told its number. What the process
// writes is kept, the process is found and ended, and the row will say that its exit status cannot be had.
func TestSupervisorKilledWhileStarting(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		ours, theirs, err := protocol.Pair()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := protocol.New(theirs)
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan *exec.Cmd, 1)
		go func() { started <- playHalfSupervisor(t, conn, recorded) }()
		client := supervisor.NewClient(ours)
		f := newRunner(t, func(c *runner.Config) { c.Supervisor = client })
		id := f.start(t, shell(`echo first; sleep 0.3; echo second; echo err >&2; exec sleep 600`))
		child := <-started
		f.log.awaitType(t, id, events.TypeTerminationStarted)
		_ = child.Wait() // Somebody ended it, or this never returns.
		story := f.log.tell(t, id)
		if cause := one[*executionv1.WaitFailed](t, story).GetCause(); !strings.Contains(cause, "supervisor ended") {
			t.Errorf("cause %q", cause)
		}
		if n := len(all[*executionv1.ProcessStarted](story)); recorded != (n == 1) {
			t.Errorf("recorded: %v, and %d facts say that it was started", recorded, n)
		}
		if got := signals(story); len(got) != 1 || got[0] != "TERM" {
			t.Errorf("signals %v", got)
		}
		// What it wrote before it was ended; the TERM may have come before the second line.
		if got := string(story.output[stdout]); got != "first\n" && got != "first\nsecond\n" {
			t.Errorf("stdout %q", got)
		}
		_ = client.Close()
	}
}

// playHalfSupervisor is a supervisor up to its death in the middle of a start.
func playHalfSupervisor(t *testing.T, conn *protocol.Conn, record bool) *exec.Cmd {
	defer conn.Close()
	m, err := conn.Receive()
	if err != nil || m.Kind != protocol.Start {
		t.Errorf("%v, %v", m.Kind, err)
		return nil
	}
	var read, write [2]*os.File
	for i := range read {
		if read[i], write[i], err = os.Pipe(); err != nil {
			t.Error(err)
			return nil
		}
	}
	if err := conn.Send(protocol.Message{Kind: protocol.Piped, Attempt: m.Attempt, Files: read[:]}); err != nil {
		t.Error(err)
	}
	c := exec.Command(m.Command.Argv[0], m.Command.Argv[1:]...)
	for name, value := range m.Command.Environment {
		c.Env = append(c.Env, name+"="+value)
	}
	c.Stdout, c.Stderr, c.SysProcAttr = write[0], write[1], &syscall.SysProcAttr{Setsid: true}
	if err := os.WriteFile(m.Folder+"/"+protocol.StartingFile, nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := c.Start(); err != nil {
		t.Error(err)
		return nil
	}
	eventually(t, "it has written something", func() bool {
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", c.Process.Pid)) // proc_pid_io(5)
		return err != nil || !strings.Contains(string(info), "\nwchar: 0\n")
	})
	if record {
		writeRecord(t, m.Folder, c.Process.Pid)
	}
	protocol.CloseAll(append(read[:], write[:]...))
	return c
}

func writeRecord(t *testing.T, folder string, pid int) {
	data, err := json.Marshal(protocol.Record{PID: pid, StartedAt: time.Now(), Boot: process.BootID(), Ticks: process.StartTicks(pid)})
	if err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(folder+"/"+protocol.StartingFile, data, 0o600); err != nil {
		t.Error(err)
	}
}
