package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxrssUnit is what ru_maxrss counts in (getrusage(2)).
const maxrssUnit = 1024

// exitHandle is the pidfd, or nil where the kernel has none.
type exitHandle struct{ pidfd *os.File }

func (h exitHandle) close() {
	if h.pidfd != nil {
		_ = h.pidfd.Close()
	}
}

// keepInherited closes on exec what this process was started with: Go's own descriptors always are, but one that was left
// open by whoever started the runner would go on to every process, and hold a pipe or a lock there. It does
// nothing on a kernel without close_range(2) (5.11).
var keepInherited = sync.OnceFunc(func() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
})

func fork(path string, s Spec, files [3]*os.File) (int, exitHandle, error) {
	fds, err := descriptors(files)
	if err != nil {
		return 0, exitHandle{}, err
	}
	pidfd := -1
	attributes := &syscall.ProcAttr{
		Dir: s.Directory, Env: s.environ(), Files: fds,
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if s.Cgroup != nil {
		attributes.Sys.UseCgroupFD, attributes.Sys.CgroupFD = true, int(s.Cgroup.Fd())
	}
	l, err := s.launch(path)
	if err != nil {
		return 0, exitHandle{}, err
	}
	var pid int
	onThread(!s.Limits.GetAllowNewPrivileges(), func() {
		if l == nil {
			pid, err = syscall.ForkExec(path, s.Argv, attributes)
		} else {
			pid, err = l.fork(attributes)
		}
	})
	if err != nil {
		return 0, exitHandle{}, err
	}
	if pidfd < 0 {
		return pid, exitHandle{}, nil
	}
	// Non-blocking, or os.NewFile would not give it to the poller. When that fails, Wait waits in a thread.
	_ = unix.SetNonblock(pidfd, true)
	return pid, exitHandle{os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// onThread forks in a thread of its own, with no signal blocked. A confined one cannot gain privileges: no_new_privs belongs to a thread,
// is inherited by what it forks, and cannot be taken back (prctl(2), PR_SET_NO_NEW_PRIVS). The thread ends with the goroutine, since it
// stays locked.
func onThread(confined bool, fork func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockUnblocked()
		if confined {
			// It cannot fail since Linux 3.5; Go needs 3.2, where there is nothing that could be set.
			_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		fork()
	}()
	<-done
}

func lockUnblocked() {
	runtime.LockOSThread()
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil) // It only fails for an operation that does not exist.
}

// Wait returns how the process ended. It does not reap: Release does. Any error means that the status
// could not be had, ECHILD above all (somebody else reaped it, or SIGCHLD is ignored). It is called once.
func (p *Process) Wait() (Exit, error) {
	p.handle.untilEnded()
	if p.released() {
		return Exit{}, fmt.Errorf("wait for process %d: %w", p.PID, os.ErrClosed)
	}
	var info unix.Siginfo
	var usage unix.Rusage
	for {
		err := unix.Waitid(unix.P_PID, p.PID, &info, unix.WEXITED|unix.WNOWAIT, &usage)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			p.lost()
			return Exit{}, fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
	}
	exit := Exit{EndedAt: time.Now(), Usage: resourceUsage(&usage)}
	status := childStatus(&info)
	if info.Code == cldExited {
		exit.Code = int(status)
	} else {
		exit.Signal, exit.CoreDumped = syscall.Signal(status), info.Code == cldDumped
	}
	return exit, nil
}

// untilEnded waits until the kernel says that the process is over, or until close. Where there is no pidfd, or the
// poller does not take it, it returns at once, and waitid(2) waits in a thread.
func (h exitHandle) untilEnded() {
	if h.pidfd == nil {
		return
	}
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		// A pidfd is readable once its process has ended (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || (err != nil && !errors.Is(err, unix.EINTR))
	})
}

// The values of si_code for SIGCHLD, sigaction(2).
const (
	cldExited = 1
	cldDumped = 3
)

// childStatus reads si_status. x/sys leaves the union of siginfo_t opaque; for a child it holds pid, uid and
// status, 32 bits each, after three ints and the padding that aligns the union to a pointer.
func childStatus(info *unix.Siginfo) int32 {
	const pointer = unsafe.Sizeof(uintptr(0))
	const union = (3*4 + pointer - 1) / pointer * pointer
	raw := (*[unsafe.Sizeof(unix.Siginfo{})]byte)(unsafe.Pointer(info))
	return int32(binary.NativeEndian.Uint32(raw[union+8:]))
}

// GroupHasOthers reports whether the group has a member besides the process itself that is not a zombie. It
// reads all of /proc, so it is for rare moments.
func (p *Process) GroupHasOthers() (bool, error) { return GroupHasOthers(p.PID) }

// GroupHasOthers is Process.GroupHasOthers for a process that somebody else holds.
func GroupHasOthers(leader int) (bool, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return false, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == leader {
			continue
		}
		if state, group, ok := readStat(name); ok && group == leader && state != "Z" && state != "X" {
			return true, nil
		}
	}
	return false, nil
}

// readStat reads state and group of a process, proc_pid_stat(5). The name in field 2 may hold anything, so
// fields are counted from its last bracket. False: it ended meanwhile.
func readStat(pid string) (state string, group int, ok bool) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", 0, false
	}
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 3 {
		return "", 0, false
	}
	group, err = strconv.Atoi(fields[2])
	return fields[0], group, err == nil
}
