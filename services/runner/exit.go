package runner

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
)

// exited is the fact about an end.
func exited(e process.Exit) *executionv1.ProcessExited {
	fact := &executionv1.ProcessExited{CoreDumped: e.CoreDumped, EndedAt: timestamp(e.EndedAt), Usage: e.Usage}
	if e.Signal != 0 {
		fact.Status = &executionv1.ProcessExited_Signal{Signal: signalOf(e.Signal)}
	} else {
		fact.Status = &executionv1.ProcessExited_ExitCode{ExitCode: int32(e.Code)}
	}
	if e.OOMKills > 0 {
		fact.OutOfMemory = &executionv1.OutOfMemory{Kills: e.OOMKills, Evidence: e.OOMEvidence}
	}
	return fact
}

func signalOf(sig syscall.Signal) *executionv1.Signal {
	return &executionv1.Signal{Number: int32(sig), Name: signalName(sig)}
}

// signalName is the name without SIG. Real-time signals have none of their own; they are counted from the
// first that programs may use (signal(7)), as kill -l does it.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	const rtmin = 34 // With glibc and musl; the kernel's own is 32.
	if n := int(sig) - rtmin; n > 0 {
		return "RTMIN+" + strconv.Itoa(n)
	} else if n == 0 {
		return "RTMIN"
	}
	return strconv.Itoa(int(sig))
}
