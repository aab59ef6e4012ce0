package process

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// check refuses what no kernel would take, before anything is opened.
func (s Spec) check() error {
	refuse := func(reason executionv1.StartFailureReason, format string, args ...any) error {
		return &StartError{Reason: reason, Errno: syscall.EINVAL, Message: fmt.Sprintf(format, args...)}
	}
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return refuse(notFound, "the command is empty")
	}
	for i, a := range s.Argv {
		if strings.IndexByte(a, 0) >= 0 {
			return refuse(notExecutable, "argument %d of the command has a NUL byte, which no argument can hold", i)
		}
	}
	for key, value := range s.Environment {
		switch {
		case key == "" || strings.Contains(key, "="):
			return refuse(notExecutable, "environment variable %q: a name is not empty and has no '='", cut(key))
		case strings.IndexByte(key, 0) >= 0 || strings.IndexByte(value, 0) >= 0:
			return refuse(notExecutable, "environment variable %q has a NUL byte, which no variable can hold", cut(key))
		}
	}
	if !filepath.IsAbs(s.Directory) || strings.IndexByte(s.Directory, 0) >= 0 {
		return refuse(badDirectory, "working directory %q is no absolute path", cut(s.Directory))
	}
	return s.checkDirectory()
}

func (s Spec) checkDirectory() error {
	info, err := os.Stat(s.Directory)
	switch {
	case err != nil:
		return startError(badDirectory, err, "working directory %q", cut(s.Directory))
	case !info.IsDir():
		return startError(badDirectory, syscall.ENOTDIR, "working directory %q", cut(s.Directory))
	}
	if err := unix.Faccessat(unix.AT_FDCWD, s.Directory, unix.X_OK, unix.AT_EACCESS); err != nil {
		return startError(badDirectory, err, "working directory %q cannot be entered", cut(s.Directory))
	}
	return nil
}

// resolve finds the file to execute, as execvp(3) does it in the child: a name with a slash is a path from the
// working directory; any other name is searched in the child's PATH, where an empty element is the
// working directory and a file that may not be executed is passed over.
func (s Spec) resolve() (string, error) {
	name := s.Argv[0]
	if strings.Contains(name, "/") {
		err := s.executable(name)
		if err == nil {
			return name, nil
		}
		if errno := errnoOf(err); errno == syscall.ENOENT || errno == syscall.ENOTDIR {
			return "", &StartError{Reason: notFound, Errno: errno, Message: fmt.Sprintf("command %q not found (working directory %q)", cut(name), cut(s.Directory))}
		}
		return "", startError(notExecutable, err, "%q is not executable", cut(name))
	}
	path, forbidden := s.Environment["PATH"], ""
	for _, element := range filepath.SplitList(path) {
		// Never filepath.Join: it would make ./x of an empty element to x, which has no slash any more.
		candidate := element + "/" + name
		if element == "" {
			candidate = "./" + name
		}
		err := s.executable(candidate)
		if err == nil {
			return candidate, nil
		}
		if forbidden == "" && errnoOf(err) == syscall.EACCES {
			forbidden = candidate
		}
	}
	if forbidden != "" {
		return "", startError(notExecutable, syscall.EACCES, "%q is not executable", cut(forbidden))
	}
	return "", &StartError{Reason: notFound, Errno: syscall.ENOENT, Message: fmt.Sprintf("command %q not found in PATH=%s", cut(name), cut(path))}
}

// executable reports why the file cannot be executed. Directories count as forbidden, as execve(2) says it.
func (s Spec) executable(path string) error {
	if !filepath.IsAbs(path) {
		path = s.Directory + "/" + path
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return syscall.EACCES
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

// environ returns the environment as execve(2) takes it, in a fixed order.
func (s Spec) environ() []string {
	list := make([]string, 0, len(s.Environment))
	for key, value := range s.Environment {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}

// BootID names this run of the machine (random(4)); empty where there is none.
var BootID = sync.OnceValue(func() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
})

// StartTicks is when the kernel started a process, in clock ticks since boot (proc_pid_stat(5), field 22), which with the boot id and the
// number names it for ever. 0: there is no such process, or nobody says.
func StartTicks(pid int) uint64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name in field 2 may hold anything; fields are counted from its last bracket, after which the third begins.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64)
	return ticks
}
