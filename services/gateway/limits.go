package gateway

import (
	"fmt"
	"strconv"
	"strings"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

// limits makes the event's limits; nil when none were asked for.
func (v *validation) limits(l *api.Limits) *executionv1.Limits {
	if l == nil {
		return nil
	}
	out := &executionv1.Limits{
		MemoryBytes: l.MemoryBytes, CpuMillis: l.CPUMillis, Processes: l.Processes,
		OpenFiles: l.OpenFiles, UserProcesses: l.UserProcesses, FileSizeBytes: l.FileSizeBytes, CpuSeconds: l.CPUSeconds,
		AddressSpaceBytes: l.AddressSpaceBytes, CoreBytes: l.CoreBytes,
		User: l.User, Group: l.Group, AllowNewPrivileges: l.AllowNewPrivileges,
	}
	if l.Umask != "" {
		mask, err := strconv.ParseUint(l.Umask, 8, 32)
		if err != nil {
			v.bad("body.limits.umask", `is no octal number like "027"`)
		}
		value := uint32(mask)
		out.Umask = &value
	}
	v.text("body.limits.user", l.User, maxRequestedBy)
	v.text("body.limits.group", l.Group, maxRequestedBy)
	if err := events.CheckLimits(out); err != nil {
		for line := range strings.Lines(err.Error()) {
			v.bad("body.limits", strings.TrimSpace(fmt.Sprint(line)))
		}
	}
	return out
}
