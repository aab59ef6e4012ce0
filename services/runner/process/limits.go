package process

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

const limitUnavailable = executionv1.StartFailureReason_START_FAILURE_REASON_LIMIT_UNAVAILABLE

// Unavailable is the error for a limit that cannot be had here. The message says which and what to do.
func Unavailable(errno syscall.Errno, format string, args ...any) *StartError {
	return &StartError{Reason: limitUnavailable, Errno: errno, Message: fmt.Sprintf(format, args...)}
}

// Identity is who a process is to be.
type Identity struct {
	UID, GID int
	// Groups are the supplementary groups.
	Groups []int
}

// IdentityOf looks up who the limits ask for. nil: who the runner is. An error is a *StartError.
//
// A user has its own groups, and a group that is named beside it in place of its first one. A group alone stands by itself: the runner's
// groups are none of the process's business then.
func IdentityOf(l *executionv1.Limits) (*Identity, error) {
	name, groupName := l.GetUser(), l.GetGroup()
	if name == "" && groupName == "" {
		return nil, nil
	}
	id := &Identity{UID: os.Geteuid(), GID: -1}
	if name != "" {
		if err := id.setUser(name); err != nil {
			return nil, err
		}
	}
	if groupName != "" {
		gid, err := lookupGroup(groupName)
		if err != nil {
			return nil, err
		}
		id.GID = gid
	}
	if id.GID < 0 {
		return nil, Unavailable(0, "user %q is only a number here, without groups: name a group too", cut(name))
	}
	if os.Geteuid() == 0 {
		return id, nil
	}
	if id.UID == os.Geteuid() && id.GID == os.Getegid() {
		return nil, nil // That is who it is anyway.
	}
	return nil, Unavailable(syscall.EPERM, "the runner is user %d and cannot start a process as user %d, group %d: only one that runs as root can", os.Geteuid(), id.UID, id.GID)
}

func (id *Identity) setUser(name string) error {
	u, err := user.Lookup(name)
	if number, numErr := parseID(name); err != nil && numErr == nil {
		if u, err = user.LookupId(strconv.Itoa(number)); err != nil {
			id.UID = number // It needs no entry; then it has no groups.
			return nil      //nolint:nilerr // No entry is no fault.
		}
	}
	if err != nil {
		return Unavailable(0, "user %q does not exist on the runner", cut(name))
	}
	uid, uidErr := parseID(u.Uid)
	gid, gidErr := parseID(u.Gid)
	list, err := u.GroupIds()
	if err := errors.Join(uidErr, gidErr, err); err != nil {
		return Unavailable(0, "the groups of user %q cannot be found: %v", cut(name), err)
	}
	id.UID, id.GID = uid, gid
	for _, text := range list {
		g, err := parseID(text)
		if err != nil {
			return Unavailable(0, "the groups of user %q cannot be found: %v", cut(name), err)
		}
		id.Groups = append(id.Groups, g)
	}
	slices.Sort(id.Groups)
	return nil
}

func lookupGroup(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err == nil {
		name = g.Gid
	}
	if number, numErr := parseID(name); numErr == nil {
		return number, nil
	}
	return 0, Unavailable(0, "group %q does not exist on the runner", cut(name))
}

// parseID reads a user's or group's number. The last one stands for none (setresuid(2)).
func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange
	}
	return int(n), err
}
