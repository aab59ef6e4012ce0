package runner_test

import (
	"bytes"
	"log/slog"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/cgroup"
)

// The KILL reaches also who left the session, where control groups can be made; a TERM and an end that nobody asked for do not.
func TestKillReachesWhoLeftTheSession(t *testing.T) {
	t.Parallel()
	root := cgroup.Open("r1", t.TempDir(), slog.New(slog.DiscardHandler))
	group, err := root.New("probe", cgroup.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	available := group != nil
	group.Remove()
	root.Close()

	s := newStage(t, "")
	daemon := `setsid sh -c 'trap "" TERM; echo $$ >daemon; exec sleep 600' </dev/null >/dev/null 2>&1 & while ! [ -s daemon ]; do sleep 0.02; done; cat daemon; `
	number := func(id string) int {
		line, _, _ := bytes.Cut(s.log.tell(t, id).output[stdout], []byte("\n"))
		n, err := strconv.Atoi(string(line))
		if err != nil {
			t.Fatalf("no number in %q", line)
		}
		return n
	}
	ended := shell(daemon + `exit 0`)
	ended.Directory = t.TempDir()
	byItself := number(s.start(t, ended))
	if !alive(byItself) {
		t.Error("what a process left behind that ended by itself was killed")
	}
	killed := shell(daemon + `trap "" TERM; while :; do sleep 0.05; done`)
	killed.Directory, killed.Timeout, killed.Grace = t.TempDir(), durationpb.New(5*time.Second), durationpb.New(200*time.Millisecond)
	id := s.start(t, killed)
	left := number(id)
	story := s.log.tell(t, id)
	if got := signals(story); strings.Join(got, " ") != "TERM KILL" {
		t.Errorf("signals %v", got)
	}
	if one[*executionv1.ProcessExited](t, story).GetSignal().GetName() != "KILL" {
		t.Error("it did not end by the KILL")
	}
	if available {
		eventually(t, "who left the session is gone", func() bool { return !alive(left) })
	} else {
		t.Log("this machine has no control groups that the test may make")
		end(t, left)
	}
	end(t, byItself)
}

// end ends a process that a test has left behind.
func end(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("process %d: %v", pid, err)
	}
	eventually(t, "it is gone", func() bool { return !alive(pid) })
}
