package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Spec is what to start.
type Spec struct {
	// Argv is the program and its arguments.
	Argv []string
	// Path is the file to execute, as Find found it; empty: Start finds it.
	Path string
	// Environment is the whole environment. Nothing is inherited.
	Environment map[string]string
	// Directory is the working directory, absolute.
	Directory string
	// Stdin asks for a pipe on standard input. Without it the process reads from the null device.
	Stdin bool
	// Pipes, if not nil, are those to use, opened with the same Stdin. When Start fails they stay the caller's.
	Pipes *Pipes
	// Limits are those that the kernel keeps for each process (rlimits, umask, user, group, privileges); the others are cgroup's.
	// nil: the runner's own, but without new privileges.
	Limits *executionv1.Limits
	// Cgroup, if not nil, is the folder of a cgroup (version 2) that the process is born in; the caller closes it. Join lists more groups, by
	// their lists of processes (cgroup.procs), that it enters before its program begins.
	Cgroup *os.File
	Join   []string
}

// Process is a started process. Its methods are safe for concurrent use.
type Process struct {
	// PID is also the number of the process group and of the session.
	PID int
	// StartedAt is the wall time right before fork(2). The kernel's own record (/proc/<pid>/stat, field 22)
	// counts in steps of 10 ms, which would show a short command as longer than it was.
	StartedAt time.Time
	// Stdin is the write end of the process's standard input, nil when none was asked for. Stdout and Stderr are
	// the read ends. All three are the caller's to close, and work with deadlines.
	Stdin, Stdout, Stderr *os.File

	handle exitHandle

	mu   sync.Mutex
	gone bool // Reaped, by us or by somebody else: the number must not be used any more.
}

// Exit says how a process ended.
type Exit struct {
	// Code is what was given to exit(2), meaningful when Signal is 0.
	Code int
	// Signal ended the process, or 0.
	Signal     syscall.Signal
	CoreDumped bool
	// EndedAt is when the end was seen, not later than it was acted on.
	EndedAt time.Time
	// Usage is the process's and that of the children it waited for. On Linux max_resident_bytes is never below
	// what the parent had at fork(2), because execve(2) carries the high-water mark over.
	Usage *executionv1.ResourceUsage
	// OOMKills and OOMEvidence are known to who has the control group.
	OOMKills    uint64
	OOMEvidence string
}

// Find checks what can be checked without starting anything, and finds the file to execute. It may wait for as long as a file system that is
// mounted from elsewhere does not answer. An error is always a *StartError.
func (s Spec) Find() (path string, err error) {
	if err := s.check(); err != nil {
		return "", err
	}
	return s.resolve()
}

// Start starts the process. An error is always a *StartError. The process gets its three streams and no other
// descriptor, also none that the runner itself inherited.
func Start(s Spec) (*Process, error) {
	keepInherited()
	path, err := s.Path, error(nil)
	if path == "" {
		if path, err = s.Find(); err != nil {
			return nil, err
		}
	}
	ends := s.Pipes
	if ends == nil {
		if ends, err = OpenPipes(s.Stdin); err != nil {
			return nil, err
		}
	}
	started := time.Now()
	pid, handle, forkErr := fork(path, s, ends.child)
	if forkErr != nil {
		if s.Pipes == nil {
			ends.Close()
		}
		var start *StartError
		if errors.As(forkErr, &start) {
			return nil, start
		}
		return nil, s.explain(path, forkErr)
	}
	ends.closeChild()
	return &Process{PID: pid, StartedAt: started, Stdin: ends.stdin, Stdout: ends.stdout, Stderr: ends.stderr, handle: handle}, nil
}

// SignalGroup sends a signal to the process and all descendants that stayed in its group. It answers
// os.ErrProcessDone when the process was reaped.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return os.ErrProcessDone
	}
	if err := syscall.Kill(-p.PID, sig); err != nil {
		return fmt.Errorf("signal process group %d: %w", p.PID, err)
	}
	return nil
}

// Release lets go of the number. It reaps the process when it has ended, and else leaves it alone. A Wait
// that still runs ends with os.ErrClosed where the kernel has pidfds. Calling it again does nothing.
func (p *Process) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		p.handle.close()
		return
	}
	p.gone = true
	for {
		_, err := syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil)
		if !errors.Is(err, syscall.EINTR) {
			break // ECHILD included: somebody else has reaped it.
		}
	}
	p.handle.close()
}

func (p *Process) released() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

func (p *Process) lost() {
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
}

// Pipes holds both sides of the three streams while a process is being started.
type Pipes struct {
	stdin, stdout, stderr *os.File
	child                 [3]*os.File
}

// OpenPipes opens them before the start, for who wants to have the read ends in safety first. An error is a *StartError.
func OpenPipes(stdin bool) (*Pipes, error) {
	p := &Pipes{}
	if err := p.open(stdin); err != nil {
		p.Close()
		return nil, resources("open the process's pipes", err)
	}
	return p, nil
}

// Output returns the read ends of standard output and standard error, which stay the owner's.
func (p *Pipes) Output() (stdout, stderr *os.File) { return p.stdout, p.stderr }

func (p *Pipes) open(stdin bool) (err error) {
	if stdin {
		if p.child[0], p.stdin, err = os.Pipe(); err != nil {
			return err
		}
	} else if p.child[0], err = os.Open(os.DevNull); err != nil {
		return err
	}
	if p.stdout, p.child[1], err = os.Pipe(); err != nil {
		return err
	}
	p.stderr, p.child[2], err = os.Pipe()
	return err
}

func (p *Pipes) closeChild() {
	for _, f := range p.child {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Close closes all of them; nil ones are none.
func (p *Pipes) Close() {
	if p == nil {
		return
	}
	p.closeChild()
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// descriptors returns the child's descriptors in blocking mode, which is what programs expect. Ours stay
// non-blocking: the mode belongs to the open file, and the two ends of a pipe are two open files.
func descriptors(files [3]*os.File) ([]uintptr, error) {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
		if err := syscall.SetNonblock(int(fds[i]), false); err != nil {
			return nil, err
		}
	}
	return fds, nil
}
