package process

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Orphan is a process, with its group, of which the parent is gone: its number alone does not name it any more.
//
// Its leader is known by the number and the time of its start. Where the leader has ended, or was never written down, the others are
// known by the environment that they were started with, and only in sessions of their own: nobody else is ever signalled.
type Orphan struct {
	// PID is the leader's number, 0 when that is not known; Ticks is when it was started (StartTicks), 0 likewise.
	PID   int
	Ticks uint64
	// Mark and Attempt are two variables, as NAME=VALUE, that both are in its environment.
	Mark, Attempt string
}

// Lives reports whether somebody is left.
func (o Orphan) Lives() bool { return len(o.groups()) > 0 }

// Signal signals all that is left; syscall.ESRCH when nobody is.
func (o Orphan) Signal(sig syscall.Signal) error {
	err := error(syscall.ESRCH)
	for _, group := range o.groups() {
		if killErr := syscall.Kill(-group, sig); killErr == nil {
			err = nil
		} else if err != nil {
			err = killErr
		}
	}
	return err
}

// groups lists the process groups of those who live.
func (o Orphan) groups() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	leads := o.PID > 0 && o.Ticks > 0 && StartTicks(o.PID) == o.Ticks
	var list []int
	found := map[int]bool{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		state, group, session, ok := readSession(e.Name())
		if !ok || state == "Z" || state == "X" || found[group] || group <= 1 || group == syscall.Getpgrp() {
			continue
		}
		mine := session == o.PID && leads
		if !mine && (o.PID == 0 || session == o.PID) {
			mine = o.marked(e.Name())
		}
		if mine {
			found[group] = true
			list = append(list, group)
		}
	}
	return list
}

func (o Orphan) marked(pid string) bool {
	environ, err := os.ReadFile("/proc/" + pid + "/environ")
	if err != nil {
		return false
	}
	mark, attempt := false, false
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		mark = mark || string(v) == o.Mark
		attempt = attempt || string(v) == o.Attempt
	}
	return mark && attempt
}

// readSession reads state, group and session of a process (proc_pid_stat(5)).
func readSession(pid string) (state string, group, session int, ok bool) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", 0, 0, false
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 4 {
		return "", 0, 0, false
	}
	group, err = strconv.Atoi(fields[2])
	if err != nil {
		return "", 0, 0, false
	}
	session, err = strconv.Atoi(fields[3])
	return fields[0], group, session, err == nil
}
