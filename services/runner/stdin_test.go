package runner_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestStdin(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	document := noise(3, 4<<20)
	spec := shell(`sha256sum | cut -d' ' -f1`)
	spec.Stdin = document
	s := f.log.tell(t, f.start(t, spec))
	if want := fmt.Sprintf("%x\n", sha256.Sum256(document)); string(s.output[stdout]) != want {
		t.Errorf("the process read %q, want %q", s.output[stdout], want)
	}
	if n := len(all[*executionv1.StdinWriteFailed](s)); n != 0 {
		t.Errorf("%d stdin failures", n)
	}
}

func TestNoStdinIsEmpty(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	s := f.log.tell(t, f.start(t, shell(`wc -c; readlink /proc/self/fd/0`)))
	if got := strings.TrimSpace(string(s.output[stdout])); got != "0\n/dev/null" {
		t.Errorf("stdout %q", got)
	}
}

// Both sides write first: it works because nobody waits for the other.
func TestProcessWritesBeforeItReads(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := shell(`head -c 4194304 /dev/zero; cat`)
	spec.Stdin = noise(4, 4<<20)
	s := f.log.tell(t, f.start(t, spec))
	if got := s.output[stdout]; !bytes.Equal(got[:4<<20], make([]byte, 4<<20)) || !bytes.Equal(got[4<<20:], spec.GetStdin()) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestStdinIsNotTakenWhole(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	for name, c := range map[string]struct {
		script, cause string
		code          int32
	}{
		"closed at once":      {`exec <&-; echo closed; read x <FIFO; exit 5`, "broken pipe", 5},
		"never read":          {`echo unread; exit 0`, "", 0},
		"never read for long": {`sleep 0.3; echo slept; exit 4`, "ended", 4},
		"some of it":          {`head -c 100000 | wc -c; exec <&-; read x <FIFO; exit 6`, "broken pipe", 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fifo := mkfifo(t)
			spec := shell(strings.ReplaceAll(c.script, "FIFO", fifo))
			spec.Stdin = noise(5, 8<<20)
			id := f.start(t, spec)
			if strings.Contains(c.script, "FIFO") {
				f.log.awaitType(t, id, events.TypeStdinWriteFailed)
				writeFIFO(t, fifo, "go\n")
			}
			s := f.log.tell(t, id)
			failed := one[*executionv1.StdinWriteFailed](t, s)
			if failed.GetOfferedBytes() != 8<<20 || failed.GetAcceptedBytes() > 1<<20 || !strings.Contains(failed.GetCause(), c.cause) || failed.GetCause() == "" {
				t.Errorf("stdin: %v", failed)
			}
			if strings.HasPrefix(c.script, "head") && failed.GetAcceptedBytes() < 100_000 {
				t.Errorf("stdin: %v, and the process read 100000", failed)
			}
			if exit := one[*executionv1.ProcessExited](t, s); exit.GetExitCode() != c.code || len(s.output[stdout]) == 0 {
				t.Errorf("exit %v, stdout %q", exit, s.output[stdout])
			}
		})
	}
}

func TestTimeoutWhileStdinWaits(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := shell(`echo x; exec sleep 600`)
	spec.Stdin, spec.Timeout = noise(6, 8<<20), durationpb.New(5*time.Second)
	s := f.log.tell(t, f.start(t, spec))
	if failed := one[*executionv1.StdinWriteFailed](t, s); failed.GetAcceptedBytes() == 0 || failed.GetAcceptedBytes() >= 8<<20 {
		t.Errorf("stdin: %v", failed)
	}
	if got := signals(s); len(got) != 1 || string(s.output[stdout]) != "x\n" {
		t.Errorf("signals %v, stdout %q", got, s.output[stdout])
	}
}

// A daemon inherited the pipe and reads nothing: the writer would wait for ever, if the end of the process did not end it.
func TestGrandchildHoldsStdin(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := shell(`exec 3<&0; head -c 1 <&3 >/dev/null; setsid sleep 600 <&3 >/dev/null 2>&1 & echo $!`)
	spec.Stdin = noise(9, 8<<20)
	s := f.log.tell(t, f.start(t, spec))
	_ = syscall.Kill(atoi(t, s.output[stdout]), syscall.SIGKILL)
	if failed := one[*executionv1.StdinWriteFailed](t, s); failed.GetCause() != "the process ended before it read all of its standard input" || failed.GetAcceptedBytes() == 0 {
		t.Errorf("stdin: %v", failed)
	}
	if exit := one[*executionv1.ProcessExited](t, s); exit.GetExitCode() != 0 {
		t.Errorf("exit: %v", exit)
	}
}
