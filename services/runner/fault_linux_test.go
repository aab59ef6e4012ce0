package runner_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// brokenDisk makes the file of an attempt's stdout one that the kernel can refuse to let grow: writing to it then fails, with another
// error than that of a full disk.
func brokenDisk(t *testing.T, data, execution string) (breakIt func()) {
	t.Helper()
	fd, err := unix.MemfdCreate("disk", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "disk")
	t.Cleanup(func() { _ = file.Close() })
	folder := filepath.Join(data, "attempts", execution+"-1")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), filepath.Join(folder, "stdout")); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
			t.Error(err)
		}
	}
}

// The disk breaks under one stream: what it held is published, the process goes on, the exact range that is lost is listed, and the
// other stream is whole. So it is also when the worker is killed after that.
func TestDiskBreaks(t *testing.T) {
	const before, after = 50_000, 3_000_000
	script := func(fifo string) *executionv1.Prepared {
		return whole(shell(fmt.Sprintf(`head -c %d /dev/zero; read x <%s; head -c %d /dev/zero; echo more >&2; read x <%s; head -c 7 /dev/zero; echo done >&2; exit 6`, before, fifo, after, fifo)))
	}
	check := func(t *testing.T, s story, lost uint64) {
		t.Helper()
		if got := s.output[stdout]; !bytes.Equal(got, make([]byte, before)) || string(s.output[stderr]) != "more\ndone\n" {
			t.Errorf("%d bytes of stdout are published, want %d; stderr %q", len(got), before, s.output[stderr])
		}
		seal := s.seals[stdout]
		if want := []*executionv1.ByteRange{{Start: before, End: before + lost}}; fmt.Sprint(seal.GetLost()) != fmt.Sprint(want) ||
			seal.GetCapturedBytes() != before+lost || seal.GetPublishedBytes() != before || len(seal.GetSha256()) != 0 || seal.GetPipeStillHeld() {
			t.Errorf("the seal is %v, want %v lost", seal, want)
		}
		if len(s.seals[stderr].GetLost()) != 0 {
			t.Errorf("stderr: %v", s.seals[stderr])
		}
		failed := one[*executionv1.OutputReadFailed](t, s)
		if failed.GetOffset() != before || failed.GetStream() != stdout || !strings.Contains(failed.GetCause(), "operation not permitted") {
			t.Errorf("%v", failed)
		}
		if code := one[*executionv1.ProcessExited](t, s).GetExitCode(); code != 6 {
			t.Errorf("exit code %d", code)
		}
	}
	t.Run("and the process goes on", func(t *testing.T) {
		t.Parallel()
		f := newRunner(t, nil)
		id, err := events.NewExecutionID()
		if err != nil {
			t.Fatal(err)
		}
		breakIt, fifo := brokenDisk(t, f.data, id), mkfifo(t)
		if err := f.Handle(preparedAs(t, id, script(fifo))); err != nil {
			t.Fatal(err)
		}
		f.log.awaitOutput(t, id, stdout, strings.Repeat("\x00", before))
		breakIt()
		writeFIFO(t, fifo, "go\n")
		f.log.awaitOutput(t, id, stderr, "more")
		writeFIFO(t, fifo, "go\n")
		check(t, f.log.tell(t, id), after+7)
	})
	t.Run("and the worker is killed", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, "")
		s.log.tell(t, s.start(t, shell(`true`))) // Before that, the worker looks through its folders.
		id, err := events.NewExecutionID()
		if err != nil {
			t.Fatal(err)
		}
		breakIt, fifo := brokenDisk(t, s.data, id), mkfifo(t)
		s.queue.add(preparedAs(t, id, script(fifo)), id)
		s.log.awaitOutput(t, id, stdout, strings.Repeat("\x00", before))
		breakIt()
		writeFIFO(t, fifo, "go\n")
		s.log.awaitOutput(t, id, stderr, "more")
		if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		writeFIFO(t, fifo, "go\n")
		story := s.log.tell(t, id)
		// What was thrown away since the last whole MiB is not known to the next worker.
		lost := story.seals[stdout].GetCapturedBytes() - before
		if lost < after-1<<20 || lost > after+7 {
			t.Errorf("%d bytes are listed as lost, about %d are", lost, after+7)
		}
		check(t, story, lost)
	})
}
