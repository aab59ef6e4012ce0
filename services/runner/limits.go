package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// limited begins a command with the attempt's limits. The error is a *process.StartError.
func (a *attempt) limited() (protocol.Command, error) {
	var c protocol.Command
	l := a.spec.GetLimits()
	if l == nil {
		return c, nil
	}
	if err := events.CheckLimits(l); err != nil { // From a preparer that is not ours.
		return c, process.Unavailable(0, "the limits cannot be: %s", oneLine(err.Error()))
	}
	text, err := proto.Marshal(l)
	c.Limits = text
	return c, err
}

// owner is who a fresh working directory has to belong to; nil: the runner.
func (a *attempt) owner() (*process.Identity, error) { return process.IdentityOf(a.spec.GetLimits()) }

// give makes a directory for somebody else, who then owns it. One that is there is his, from before a restart.
func give(path string, to *process.Identity) error {
	err := os.Mkdir(path, 0o700)
	if err == nil {
		return os.Lchown(path, to.UID, to.GID)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || (int(stat.Uid) != to.UID && int(stat.Uid) != os.Geteuid()) {
		return fmt.Errorf("%s is somebody else's", path)
	}
	return os.Lchown(path, to.UID, to.GID)
}
