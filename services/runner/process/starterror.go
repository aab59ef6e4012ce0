package process

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

const (
	notFound      = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND
	notExecutable = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_EXECUTABLE
	badDirectory  = executionv1.StartFailureReason_START_FAILURE_REASON_DIRECTORY
	noResources   = executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES
)

// StartError says why a process could not be started.
type StartError struct {
	Reason executionv1.StartFailureReason
	// Errno is the system's error number, 0 when there was none.
	Errno syscall.Errno
	// Message is one line for people. It quotes the program and the directory, never arguments or values of variables
	// other than PATH.
	Message string
}

func (e *StartError) Error() string { return e.Message }

func (e *StartError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// explain turns what fork(2), chdir(2) or execve(2) answered into words.
func (s Spec) explain(path string, err error) error {
	name := cut(path)
	switch errno := errnoOf(err); errno {
	case syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
		return resources("start a process", err)
	case syscall.E2BIG:
		size := 0
		for _, list := range [][]string{s.Argv, s.environ()} {
			for _, v := range list {
				size += len(v) + 1
			}
		}
		return startError(noResources, errno, "arguments and environment of %q have %d bytes, more than the system takes", name, size)
	case syscall.ENOEXEC:
		return &StartError{Reason: notExecutable, Errno: errno, Message: fmt.Sprintf("%q is not executable: exec format error (a script needs a first line such as #!/bin/sh)", name)}
	case syscall.ENOENT:
		// The directory or the file may have gone since they were looked at.
		if err := s.checkDirectory(); err != nil {
			return err
		}
		if s.executable(path) != nil {
			return startError(notFound, errno, "command %q not found", name)
		}
		return &StartError{Reason: notExecutable, Errno: errno, Message: fmt.Sprintf("%q is not executable: its interpreter %s does not exist", name, s.interpreter(path))}
	default:
		if err := s.checkDirectory(); err != nil {
			return err
		}
		return startError(notExecutable, err, "%q is not executable", name)
	}
}

// interpreter returns what a script's first line names, quoted, or nothing for a binary.
func (s Spec) interpreter(path string) string {
	if !filepath.IsAbs(path) {
		path = s.Directory + "/" + path
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	// Linux reads 256 bytes (BINPRM_BUF_SIZE).
	line, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if rest, ok := strings.CutPrefix(line, "#!"); ok {
		if words := strings.Fields(rest); len(words) > 0 {
			return fmt.Sprintf("%q", words[0])
		}
	}
	return "(the loader of a binary)"
}

func resources(doing string, err error) error {
	return startError(noResources, err, "the runner has no room to %s", doing)
}

func startError(reason executionv1.StartFailureReason, err error, format string, args ...any) error {
	errno := errnoOf(err)
	text := err.Error()
	if errno != 0 {
		text = errno.Error() // Without the path that *fs.PathError repeats.
	}
	return &StartError{Reason: reason, Errno: errno, Message: fmt.Sprintf(format, args...) + ": " + text}
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// cut keeps a hostile value from filling the text.
func cut(s string) string {
	const limit = 512
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
