//go:build linux

package supervisor_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// Files in a directory that does not answer: who looks for it makes askedFile, and then opens answerFile, a FIFO, which takes until
// somebody else does.
const askedFile, answerFile = "asked", "answer"

// soon bounds what must not wait for such a directory.
const soon = 15 * time.Second

func findSlowly(s process.Spec) (string, error) {
	if _, err := os.Lstat(filepath.Join(s.Directory, answerFile)); err == nil {
		_ = os.WriteFile(filepath.Join(s.Directory, askedFile), nil, 0o600)
		if f, err := os.Open(filepath.Join(s.Directory, answerFile)); err == nil {
			_ = f.Close()
		}
	}
	return s.Find()
}

// silentDirectory is a directory that does not answer before answers is called, and looked at by somebody once asked returns.
func silentDirectory(t *testing.T) (directory string, asked, answers func()) {
	t.Helper()
	directory = t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(directory, answerFile), 0o600); err != nil {
		t.Fatal(err)
	}
	asked = func() {
		t.Helper()
		eventually(t, "somebody waits for the directory", func() bool {
			_, err := os.Stat(filepath.Join(directory, askedFile))
			return err == nil
		})
	}
	answers = sync.OnceFunc(func() {
		// With both ends here, whoever opens it is not waited for.
		f, err := os.OpenFile(filepath.Join(directory, answerFile), os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_ = os.Remove(f.Name())
		t.Cleanup(func() { _ = f.Close() }) // Whoever had found the name by now opens it still.
	})
	t.Cleanup(answers)
	return directory, asked, answers
}

// A worker ends while a directory that one of its processes is to work in does not answer. The next one is served at once, and when the
// directory answers, nothing of that start is left.
func TestAStartThatHangsEndsWithItsWorker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	directory, asked, answers := silentDirectory(t)
	first, die := attach(t, h)
	folder := t.TempDir()
	document, rest, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer rest.Close()
	over := make(chan error, 1)
	go func() {
		command := shell(`echo of the first`)
		command.Directory = directory
		_, err := first.Start("a/1", folder, command, document)
		_ = document.Close()
		over <- err
	}()
	asked()
	served := make(chan struct{})
	go func() {
		defer close(served)
		die()
	}()
	select {
	case <-served:
	case <-time.After(soon):
		answers()
		t.Fatal("the dead worker's start is waited for")
	}
	if err := <-over; !errors.Is(err, supervisor.ErrEnded) {
		t.Errorf("the first worker is told %v", err)
	}
	second, _ := attach(t, h)
	other := start(t, second, "b/1", t.TempDir(), `echo other`)
	if exit, out := wait(t, other), read(t, other.Stdout); exit.Code != 0 || out != "other\n" {
		t.Errorf("%+v, %q", exit, out)
	}
	other.Release()
	answers()
	eventually(t, "the document is closed", func() bool { // Nobody can read it.
		_, err := rest.WriteString("x")
		return errors.Is(err, syscall.EPIPE)
	})
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("in the attempt's folder: %v, %v", left, err)
	}
	again := start(t, second, "a/1", folder, `echo of the second`)
	if exit, out := wait(t, again), read(t, again.Stdout); exit.Code != 0 || out != "of the second\n" {
		t.Errorf("%+v, %q", exit, out)
	}
	again.Release()
}

// A directory that answers only after the last worker, and the supervisor itself, have ended starts nothing.
func TestAStartThatHangsEndsWithTheHost(t *testing.T) {
	t.Parallel()
	h := supervisor.NewHost(slog.New(slog.NewTextHandler(t.Output(), nil)))
	directory, asked, answers := silentDirectory(t)
	c, die := attach(t, h)
	folder := t.TempDir()
	over := make(chan struct{})
	go func() {
		defer close(over)
		command := shell(`exec sleep 600`)
		command.Directory = directory
		_, _ = c.Start("a/1", folder, command, nil)
	}()
	asked()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		die()
		h.Close()
	}()
	select {
	case <-closed:
	case <-time.After(soon):
		answers()
		t.Fatal("the start is waited for")
	}
	<-over
	answers()
	select {
	case <-h.Idle():
	case <-time.After(soon):
		t.Error("something was started")
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("in the attempt's folder: %v, %v", left, err)
	}
}

// A supervisor that is told to stop does, though a directory does not answer.
func TestAStartThatHangsDoesNotKeepTheSupervisor(t *testing.T) {
	t.Parallel()
	directory, asked, _ := silentDirectory(t)
	if err := os.Mkdir(filepath.Join(directory, "attempt"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := startSupervisor(t, "/proc/self/exe", hangsIn+directory)
	asked()
	late := time.AfterFunc(soon, func() { _ = s.Process.Kill() })
	defer late.Stop()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for s.log.Scan() { // Wait closes what is not read.
	}
	if err := s.Wait(); err != nil {
		t.Errorf("it did not stop cleanly: %v", err)
	}
	if _, err := os.Stat(filepath.Join(directory, "attempt", protocol.StartingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the start is reserved: %v", err)
	}
}
