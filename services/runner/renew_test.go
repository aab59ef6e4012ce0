package runner_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// The supervisor executes itself anew, again and again, while processes run, end, and read their input. It keeps its number, and every
// byte and every exit code is what it is without.
func TestSupervisorExecutesItselfAnew(t *testing.T) {
	t.Parallel()
	const running, times, size = 20, 5, 200_000
	s := newStage(t, "")
	ids := make(map[string]int)
	for i := range running {
		spec := child(fmt.Sprintf("slow-noise:%d:%d", size, i+1))
		spec.Stdin = noise(byte(i+1), 100_000+i+1)
		ids[s.start(t, spec)] = i + 1
	}
	// One that has to hear TERM, whatever was blocked on the way, and one that ends while nobody listens.
	sleeper := shell(`trap "echo heard; exit 5" TERM; echo ready; while :; do sleep 0.05; done`)
	sleeper.Timeout = durationpb.New(0)
	hears := s.start(t, sleeper)
	s.log.awaitOutput(t, hears, stdout, "ready")
	for range times {
		before := s.worker()
		if err := s.main.Process.Signal(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another worker is at work", func() bool {
			now := s.worker()
			return now != 0 && now != before
		})
	}
	after := s.start(t, shell(`echo after; grep SigBlk /proc/self/status`))
	if out := string(s.log.tell(t, after).output[stdout]); out != "after\nSigBlk:\t0000000000000000\n" {
		t.Errorf("a process of the last supervisor says %q", out)
	}
	for id, i := range ids {
		s.wants(t, id, i, size)
	}
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(s.main.Process.Pid) + "/status")
	if !strings.Contains(string(text), "Name:") {
		t.Fatal("the supervisor is not the process that it was")
	}
	log, _ := os.ReadFile(s.data + "/stderr")
	if n := strings.Count(string(log), "supervisor executes itself anew"); n != times {
		t.Errorf("it executed itself %d times, want %d", n, times)
	}
	s.stop(t)
	s.startSupervisor(t, "")
	story := s.log.tell(t, hears)
	if got := one[*executionv1.ProcessExited](t, story).GetExitCode(); got != 5 || string(story.output[stdout]) != "ready\nheard\n" {
		t.Errorf("exit code %d, stdout %q", got, story.output[stdout])
	}
}
