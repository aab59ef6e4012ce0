package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxrssUnit is what ru_maxrss counts in (getrusage(2)).
const maxrssUnit = 1

// exitHandle is empty: there are no pidfds.
type exitHandle struct{}

func (exitHandle) close() {}

// keepInherited does nothing: there is no close_range(2).
func keepInherited() {}

func fork(path string, s Spec, files [3]*os.File) (int, exitHandle, error) {
	if s.Limits != nil {
		return 0, exitHandle{}, Unavailable(syscall.ENOSYS, "limits, users and groups can only be had on Linux")
	}
	fds, err := descriptors(files)
	if err != nil {
		return 0, exitHandle{}, err
	}
	pid, err := syscall.ForkExec(path, s.Argv, &syscall.ProcAttr{
		Dir: s.Directory, Env: s.environ(), Files: fds, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return pid, exitHandle{}, err
}

// Wait returns how the process ended. Here it reaps, a moment after a waitid(2) that does not; so the rest of
// the group cannot be signalled once it returned. Any error means that the status could not be had.
func (p *Process) Wait() (Exit, error) {
	const exitedNoReap = 0x4 | 0x20 // WEXITED|WNOWAIT, <sys/wait.h>
	for {
		var info [128]byte
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, 1 /* P_PID */, uintptr(p.PID), uintptr(unsafe.Pointer(&info)), exitedNoReap, 0, 0)
		if errno != syscall.EINTR {
			break // What is wrong, wait4 says again.
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return Exit{}, fmt.Errorf("wait for process %d: %w", p.PID, os.ErrClosed)
	}
	var status unix.WaitStatus
	var usage unix.Rusage
	for {
		_, err := unix.Wait4(p.PID, &status, 0, &usage)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		p.gone = true
		if err != nil {
			return Exit{}, fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
		break
	}
	exit := Exit{EndedAt: time.Now(), Usage: resourceUsage(&usage)}
	if status.Signaled() {
		exit.Signal, exit.CoreDumped = syscall.Signal(status.Signal()), status.CoreDump()
	} else {
		exit.Code = status.ExitStatus()
	}
	return exit, nil
}

// GroupHasOthers reports whether the group has a member besides the process itself that is not a zombie.
func (p *Process) GroupHasOthers() (bool, error) { return GroupHasOthers(p.PID) }

// GroupHasOthers is Process.GroupHasOthers for a process that somebody else holds.
func GroupHasOthers(leader int) (bool, error) {
	const zombie = 5 // SZOMB, <sys/proc.h>
	members, err := unix.SysctlKinfoProcSlice("kern.proc.pgrp", leader)
	if err != nil {
		return false, err
	}
	for _, m := range members {
		if int(m.Proc.P_pid) != leader && m.Proc.P_stat != zombie {
			return true, nil
		}
	}
	return false, nil
}

// Probe says that there are no control groups.
func Probe(*os.File) error { return syscall.ENOSYS }
