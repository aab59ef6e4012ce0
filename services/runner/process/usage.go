package process

import (
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func resourceUsage(u *unix.Rusage) *executionv1.ResourceUsage {
	return &executionv1.ResourceUsage{
		UserTime:            durationpb.New(time.Duration(u.Utime.Nano())),
		SystemTime:          durationpb.New(time.Duration(u.Stime.Nano())),
		MaxResidentBytes:    uint64(u.Maxrss) * maxrssUnit,
		MinorPageFaults:     uint64(u.Minflt),
		MajorPageFaults:     uint64(u.Majflt),
		BlocksRead:          uint64(u.Inblock),
		BlocksWritten:       uint64(u.Oublock),
		VoluntarySwitches:   uint64(u.Nvcsw),
		InvoluntarySwitches: uint64(u.Nivcsw),
	}
}
