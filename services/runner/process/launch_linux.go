package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// launch is what has to be done in the child between fork(2) and execve(2), where Go lets no code of ours run. So the child first
// executes this program again, under the name launchName: it reads a launch from descriptor launchSpec, does it, and executes the
// program. What goes wrong it writes to descriptor launchReport, which execve(2) closes: its end without a word is success. The
// process keeps its number, and no argument and no variable of its own passes through anything but memory.
//
// It costs some milliseconds, so it is only done when something was asked for that needs it.
type launch struct {
	Path        string   `json:"path"`
	Argv        []string `json:"argv"`
	Environment []string `json:"environment"`
	Directory   string   `json:"directory"`

	Join     []string  `json:"join,omitempty"`
	Rlimits  []rlimit  `json:"rlimits,omitempty"`
	Umask    *int      `json:"umask,omitempty"`
	Identity *Identity `json:"identity,omitempty"`
}

// rlimit is one of setrlimit(2).
type rlimit struct {
	Name     string `json:"name"`
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

const (
	launchName   = "verbatim-launch"
	probeName    = "verbatim-probe"
	launchReport = 3
	launchSpec   = 4
)

// launchFault is what the launcher says when it does not come to the program.
type launchFault struct {
	// Stage is what it was at; stageExec and stageDirectory are known to everybody.
	Stage string        `json:"stage"`
	Errno syscall.Errno `json:"errno"`
}

const (
	stageExec      = "execute"
	stageDirectory = "directory"
)

// launch returns what the child has to do, or nil when there is nothing. The error is a *StartError.
func (s Spec) launch(path string) (*launch, error) {
	identity, err := IdentityOf(s.Limits)
	if err != nil {
		return nil, err
	}
	l := &launch{
		Path: path, Argv: s.Argv, Environment: s.environ(), Directory: s.Directory,
		Join: s.Join, Rlimits: rlimits(s.Limits), Identity: identity,
	}
	if s.Limits.GetUmask() != 0 || (s.Limits != nil && s.Limits.Umask != nil) {
		mask := int(s.Limits.GetUmask())
		l.Umask = &mask
	}
	if len(l.Join) == 0 && len(l.Rlimits) == 0 && l.Umask == nil && l.Identity == nil {
		return nil, nil
	}
	return l, nil
}

// rlimits lists the resource limits. Address space is the last one: from then on the launcher can hardly allocate.
func rlimits(l *executionv1.Limits) []rlimit {
	var list []rlimit
	if l == nil {
		return nil
	}
	add := func(name string, resource int, v *uint64) {
		if v != nil {
			list = append(list, rlimit{name, resource, *v, *v})
		}
	}
	add("nofile", unix.RLIMIT_NOFILE, l.OpenFiles)
	add("nproc", unix.RLIMIT_NPROC, l.UserProcesses)
	add("fsize", unix.RLIMIT_FSIZE, l.FileSizeBytes)
	add("core", unix.RLIMIT_CORE, l.CoreBytes)
	if l.CpuSeconds != nil {
		// At the soft limit comes XCPU, which says what happened; at the hard one KILL (getrlimit(2)).
		list = append(list, rlimit{"cputime", unix.RLIMIT_CPU, l.GetCpuSeconds(), l.GetCpuSeconds() + 1})
	}
	add("as", unix.RLIMIT_AS, l.AddressSpaceBytes)
	return list
}

// fork starts the launcher and waits until it has become the program.
func (l *launch) fork(attributes *syscall.ProcAttr) (int, error) {
	spec, err := l.spec()
	if err != nil {
		return 0, err
	}
	defer spec.Close()
	report, theirs, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer report.Close()
	defer theirs.Close()
	attributes.Files = append(attributes.Files, theirs.Fd(), spec.Fd())
	// The collector and more threads are of no use to something that lives so short. None of it gets to the program.
	attributes.Dir, attributes.Env = "/", []string{"GOGC=off", "GOMAXPROCS=1"}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{launchName}, attributes)
	if err != nil {
		return 0, err
	}
	_ = theirs.Close()
	text, err := io.ReadAll(report)
	if err == nil && len(text) == 0 {
		return pid, nil
	}
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	return 0, errors.Join(err, l.explain(text))
}

func (l *launch) spec() (*os.File, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "launch")
	if _, err = f.Write(text); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// explain turns a report into an error: a bare errno for what execve(2) answered, which Spec.explain knows.
func (l *launch) explain(report []byte) error {
	var fault launchFault
	if err := json.Unmarshal(report, &fault); err != nil {
		return Unavailable(0, "the limits cannot be set: the launcher said %q", cut(string(report)))
	}
	switch fault.Stage {
	case stageExec:
		return fault.Errno
	case stageDirectory:
		who := ""
		if l.Identity != nil {
			who = fmt.Sprintf(" by user %d", l.Identity.UID)
		}
		return startError(badDirectory, fault.Errno, "working directory %q cannot be entered%s", cut(l.Directory), who)
	}
	hint := ""
	if fault.Errno == syscall.EPERM {
		hint = " (is it more than the runner's own hard limit? then the runner needs CAP_SYS_RESOURCE, or a higher one)"
	}
	return Unavailable(fault.Errno, "%s cannot be set: %s%s", fault.Stage, fault.Errno, hint)
}

// init becomes the launcher when this program was executed as one, before main and whatever the program is.
func init() {
	if len(os.Args) == 1 && os.Args[0] == probeName {
		os.Exit(0) //nolint:forbidigo // It is the main of another program.
	}
	if len(os.Args) == 1 && os.Args[0] == launchName {
		fault := becomeProgram()
		text, _ := json.Marshal(fault) // It has a text and a number.
		_, _ = unix.Write(launchReport, text)
		os.Exit(127) //nolint:forbidigo // It is the main of another program.
	}
}

// becomeProgram does not return when all is well.
func becomeProgram() launchFault {
	runtime.LockOSThread()
	unix.CloseOnExec(launchReport)
	fault := func(stage string, err error) launchFault { return launchFault{stage, errnoOf(err)} }
	spec := os.NewFile(launchSpec, "launch")
	var l launch
	if err := json.NewDecoder(spec).Decode(&l); err != nil {
		return fault("launch", err)
	}
	_ = spec.Close()
	for _, list := range l.Join {
		if err := os.WriteFile(list, []byte("0"), 0); err != nil {
			return fault("cgroup "+list, err)
		}
	}
	if l.Umask != nil {
		syscall.Umask(*l.Umask)
	}
	small := func(r rlimit) bool { return r.Resource == unix.RLIMIT_AS }
	for _, r := range l.Rlimits {
		if !small(r) {
			if err := syscall.Setrlimit(r.Resource, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard}); err != nil {
				return fault("limit "+r.Name+"="+strconv.FormatUint(r.Soft, 10), err)
			}
		}
	}
	if id := l.Identity; id != nil {
		if err := id.assume(); err != nil {
			return fault(fmt.Sprintf("user %d, group %d", id.UID, id.GID), err)
		}
	}
	if err := os.Chdir(l.Directory); err != nil {
		return fault(stageDirectory, err)
	}
	for _, r := range l.Rlimits {
		if small(r) {
			makeRoom(l)
			if err := syscall.Setrlimit(r.Resource, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard}); err != nil {
				return fault("limit "+r.Name+"="+strconv.FormatUint(r.Soft, 10), err)
			}
		}
	}
	return fault(stageExec, syscall.Exec(l.Path, l.Argv, l.Environment))
}

func (id *Identity) assume() error {
	if err := syscall.Setgroups(id.Groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(id.GID, id.GID, id.GID); err != nil {
		return err
	}
	return syscall.Setresuid(id.UID, id.UID, id.UID)
}

// makeRoom takes from the kernel, and frees, more memory than syscall.Exec needs for its copies: afterwards there is no more to be had.
func makeRoom(l launch) {
	size := 1 << 20
	for _, list := range [][]string{l.Argv, l.Environment} {
		for _, s := range list {
			size += 2*len(s) + 64
		}
	}
	room := make([]byte, size)
	for i := 0; i < len(room); i += 4096 {
		room[i] = 1
	}
	runtime.KeepAlive(room)
	runtime.GC()
}

// Probe tries whether a process can be born in a control group of version 2, and lives.
func Probe(group *os.File) error {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{probeName}, &syscall.ProcAttr{
		Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	})
	if err != nil {
		return fmt.Errorf("start a process in a control group: %w", err)
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err == nil && (!status.Exited() || status.ExitStatus() != 0) {
			err = fmt.Errorf("a process in a control group ended with status %#x at once", int(status))
		}
		return err
	}
}
