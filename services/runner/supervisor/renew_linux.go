package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// A supervisor becomes a new version of itself by execve(2): it keeps its number, so it stays the parent of its processes, and the
// descriptors of their pipes. What the new one has to know is in a file in memory (memfd_create(2)), of which StateVariable has the
// number. The worker is killed before, which loses nothing, and the new one starts its own.
//
// Ended processes stay zombies meanwhile, as always until they are released, so no exit is missed. TERM, INT and USR2 are blocked until
// the new one listens to them; then they are delivered.

// StateVariable names the descriptor of what a former self hands on.
const StateVariable = "VERBATIM_SUPERVISOR_STATE"

// StateVersion is the form of a state that this program writes and reads.
const StateVersion = 1

type state struct {
	Version int         `json:"version"`
	Held    []heldState `json:"held"`
}

// heldState is a held process. Descriptors are -1 where there is none.
type heldState struct {
	Attempt  string          `json:"attempt"`
	Folder   string          `json:"folder"`
	Record   protocol.Record `json:"record"`
	Exit     *protocol.Exit  `json:"exit,omitempty"`
	Gone     bool            `json:"gone,omitempty"`
	Killed   bool            `json:"killed,omitempty"` // The control group.
	Reaped   bool            `json:"reaped,omitempty"`
	Stdin    int             `json:"stdin"`
	Stdout   int             `json:"stdout"`
	Stderr   int             `json:"stderr"`
	Document int             `json:"document"`
}

// renew executes the program anew. It only returns when that failed; then everything is as it was.
func (r *run) renew(ctx context.Context) error {
	if r.Accepts != nil {
		r.host.family.forking.RLock() // It is a child that nobody else may reap.
		err := r.Accepts(ctx, StateVersion)
		r.host.family.forking.RUnlock()
		if err != nil {
			return fmt.Errorf("the new program does not take over: %w", err)
		}
	}
	h := r.host
	h.family.forking.Lock() // Nobody forks, and nobody reaps.
	defer h.family.forking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := state{Version: StateVersion}
	k := &keeper{}
	defer k.giveBack()
	for attempt, p := range h.held {
		s.Held = append(s.Held, heldState{
			Attempt: attempt, Folder: p.folder, Record: p.record, Exit: p.exit, Gone: p.process.Gone(), Killed: p.group.Killed(), Reaped: p.reaped,
			Stdin: k.keep(p.stdinPipe()), Stdout: k.keep(p.process.Stdout), Stderr: k.keep(p.process.Stderr), Document: k.keep(p.document),
		})
	}
	file, err := s.file()
	if err != nil {
		return err
	}
	defer file.Close()
	environment := append(os.Environ(), StateVariable+"="+strconv.Itoa(k.keep(file)))
	if r.Keep != nil {
		more, files, err := r.Keep()
		for _, f := range files {
			defer f.Close()
		}
		if err != nil {
			return err
		}
		for i, f := range files {
			environment = append(environment, more[i]+"="+strconv.Itoa(k.keep(f)))
		}
	}
	if k.err != nil {
		return fmt.Errorf("keep descriptors: %w", k.err)
	}
	r.Logger.InfoContext(ctx, "supervisor executes itself anew", "program", r.Program, "processes", len(s.Held))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, before unix.Sigset_t
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGUSR2} {
		block.Val[(sig-1)/64] |= 1 << ((sig - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	return fmt.Errorf("execute %s: %w", r.Program, syscall.Exec(r.Program, os.Args, environment))
}

// stdinPipe is the pipe while there is something to write to it.
func (p *held) stdinPipe() *os.File {
	if p.document == nil {
		return nil
	}
	return p.process.Stdin
}

func (s state) file() (*os.File, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	fd, err := unix.MemfdCreate("supervisor", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for the state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "supervisor")
	if _, err = f.Write(text); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write state: %w", err), f.Close())
	}
	return f, nil
}

// keeper keeps descriptors open over execve(2).
type keeper struct {
	kept []int
	err  error
}

func (k *keeper) keep(f *os.File) int {
	number := -1
	if f == nil {
		return number
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { number = int(fd) })
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(number), unix.F_SETFD, 0)
	}
	k.err = errors.Join(k.err, err)
	k.kept = append(k.kept, number)
	return number
}

// giveBack lets them be closed on exec again, when there was none.
func (k *keeper) giveBack() {
	for _, fd := range k.kept {
		unix.CloseOnExec(fd)
	}
}

// restore takes over what a former self had. It comes before anything is forked or reaped.
func (h *Host) restore(f *os.File) error {
	defer f.Close()
	var s state
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return fmt.Errorf("read the state of the former supervisor: %w", err)
	}
	if s.Version != StateVersion {
		return fmt.Errorf("the former supervisor's state has version %d, this program knows %d", s.Version, StateVersion)
	}
	for _, one := range s.Held {
		p := process.Adopt(one.Record.PID, one.Record.StartedAt, one.Gone, kept(one.Stdin), kept(one.Stdout), kept(one.Stderr))
		e := &held{released: make(chan struct{}), process: p, record: one.Record, document: kept(one.Document), exit: one.Exit, folder: one.Folder}
		h.held[one.Attempt] = e
		if e.reaped = one.Reaped; one.Reaped {
			close(e.released)
			continue
		}
		e.group = h.groups.Adopt(cgroup.Find(one.Record.Groups), one.Killed)
		h.family.enter(p.PID)
		if one.Exit == nil {
			h.waits.Go(func() { h.wait(one.Attempt, one.Folder, e) })
		}
	}
	return nil
}

func kept(fd int) *os.File {
	if fd < 0 {
		return nil
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "kept")
}
