package events

import (
	"errors"
	"fmt"
	"strings"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// maxNameBytes bounds a user's or group's name (useradd(8) takes 32; directories of companies take more).
const maxNameBytes = 256

// CheckLimits reports, in a fixed order, everything about limits that no machine could ever give, joined. Whether a runner can give the rest is only
// known there.
func CheckLimits(l *executionv1.Limits) error {
	if l == nil {
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	positive := func(name string, v *uint64) {
		if v != nil && *v == 0 {
			bad("%s is 0, with which nothing can run; leave it out for no limit", name)
		}
	}
	positive("memory", l.MemoryBytes)
	positive("cpu", l.CpuMillis)
	positive("pids", l.Processes)
	positive("cputime", l.CpuSeconds)
	positive("as", l.AddressSpaceBytes)
	// The process has three descriptors, and its loader needs one more to begin.
	if l.OpenFiles != nil && l.GetOpenFiles() < 4 {
		bad("nofile is %d, it must be at least 4: three streams, and one for the program's loader", l.GetOpenFiles())
	}
	if l.CpuMillis != nil && l.GetCpuMillis() > 0 && l.GetCpuMillis() < 10 {
		bad("cpu is %d thousandths, the kernel takes 10 (0.01) or more", l.GetCpuMillis())
	}
	const most = 1 << 62 // What is more cannot be meant, and overflows where the kernel counts with a sign.
	for _, limit := range []struct {
		name  string
		value *uint64
	}{
		{"memory", l.MemoryBytes},
		{"cpu", l.CpuMillis},
		{"pids", l.Processes},
		{"nofile", l.OpenFiles},
		{"nproc", l.UserProcesses},
		{"fsize", l.FileSizeBytes},
		{"cputime", l.CpuSeconds},
		{"as", l.AddressSpaceBytes},
		{"core", l.CoreBytes},
	} {
		if limit.value != nil && *limit.value > most {
			bad("%s is %d, leave it out for no limit", limit.name, *limit.value)
		}
	}
	if l.GetUmask() > 0o777 {
		bad("umask is %#o, it must be at most 0777", l.GetUmask())
	}
	for _, who := range []struct{ what, name string }{{"user", l.GetUser()}, {"group", l.GetGroup()}} {
		if len(who.name) > maxNameBytes || strings.ContainsAny(who.name, "\x00\n:/") {
			bad("%s is no name and no number", who.what)
		}
	}
	return errors.Join(errs...)
}
