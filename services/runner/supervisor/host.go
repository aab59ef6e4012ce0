// Package supervisor holds the processes of a runner. It is the part that is meant never to crash, so it knows
// nothing of events, topics, output or brokers, and it listens to no network.
//
//	             ┌──────────── supervisor ────────────┐
//	parent ──►   │ Host: the processes, their pipes    │ ◄── socket pair ──► worker
//	             │ Run: the worker, signals, orphans   │      (package protocol)
//	             └──────────────┬─────────────────────┘
//	                       processes, each a session of its own
//
// Host starts processes, keeps a second descriptor of every pipe, and writes each exit status to the attempt's
// folder before it tells it. A worker that dies takes no descriptor's last copy with it: the process notices nothing, and
// the next worker gets the same pipes, the same document for standard input with the position that the kernel kept,
// and the same exit.
//
// An ended process stays a zombie until the worker releases it, so its number, which is also its group's, can be
// signalled without ever meaning a stranger (package process).
//
// A process is started at most once, also when the supervisor itself is killed in the middle: StartingFile is made
// exclusively and synced before fork(2). A supervisor that finds one it knows nothing of answers Gone, with what the
// former one had written down.
//
// The directory and the program are looked for before that. Where a mount does not answer, only the processes that were to start there wait,
// nothing of theirs is reserved, and neither the next worker nor the supervisor's own end waits for them.
package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// Host holds the processes. It is safe for concurrent use.
type Host struct {
	logger *slog.Logger
	groups *cgroup.Root // nil: attempts have none.
	family Family
	waits  sync.WaitGroup

	mu       sync.Mutex
	held     map[string]*held
	changed  chan struct{}            // Closed and replaced when one was released.
	worker   *protocol.Conn           // nil: none is served.
	starting map[string]chan struct{} // Attempts that are being started; closed when that is over.
	starts   sync.WaitGroup           // Those, too. It is added to while worker is served.
}

// held is one process that was not released.
type held struct {
	process  *process.Process
	record   protocol.Record
	document *os.File // nil when the process reads from the null device, or has been given everything.
	exit     *protocol.Exit
	group    *cgroup.Group
	folder   string
	reaped   bool          // Only its pipes are kept: somebody else has them, too.
	released chan struct{} // Closed when it is reaped or released.
}

// NewHost returns a host without processes.
func NewHost(l *slog.Logger) *Host {
	return &Host{logger: l, held: make(map[string]*held), changed: make(chan struct{}), starting: make(map[string]chan struct{})}
}

// UseGroups gives every attempt from now on a control group.
//
// First it tries whether a process that is born in one lives. Where the runner's own group was killed once (cgroup.kill), some kernels
// kill every such process in its first moment; see Group.Remove.
func (h *Host) UseGroups(r *cgroup.Root) {
	h.groups = r
	group, err := r.New("", cgroup.Limits{})
	if group == nil || err != nil {
		return
	}
	folder, err := group.Open()
	if err == nil && folder != nil {
		h.family.forking.RLock()
		err = process.Probe(folder)
		h.family.forking.RUnlock()
		_ = folder.Close()
	}
	group.Remove()
	if err != nil {
		r.GiveUpV2(err)
	}
}

// Serve answers one worker until its end of the socket is closed. Only one worker is served at a time. ready is
// called when the worker says so. A start that has not begun by the end, since a mount does not answer, never does.
func (h *Host) Serve(c *protocol.Conn, ready func()) error {
	h.mu.Lock()
	h.worker = c
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.worker = nil
		h.mu.Unlock()
		h.starts.Wait() // The next worker finds what this one started.
	}()
	for {
		m, err := c.Receive()
		if err != nil {
			return err
		}
		if m.Kind == protocol.Start {
			go h.start(c, m) // Side by side: each waits for the disk and for fork(2).
			continue
		}
		if m.Kind == protocol.Ready && ready != nil {
			ready()
		}
		if err := h.reply(c, m); err != nil {
			return err
		}
	}
}

func (h *Host) reply(c *protocol.Conn, m protocol.Message) error {
	answer := h.answer(m)
	answer.Number = m.Number
	return c.Send(answer)
}

// answer does what was asked.
func (h *Host) answer(m protocol.Message) protocol.Message {
	switch m.Kind {
	case protocol.Signal:
		return h.signal(m)
	case protocol.StdinDone:
		h.stdinDone(m.Attempt)
	case protocol.Reap:
		h.reap(m.Attempt)
	case protocol.Release:
		h.release(m.Attempt)
	case protocol.Ready:
	default:
		protocol.CloseAll(m.Files)
		return protocol.Message{Kind: protocol.Done, Error: fmt.Sprintf("unknown request %q", m.Kind)}
	}
	return protocol.Message{Kind: protocol.Done}
}

// pipe opens the process's pipes and hands out the read ends before there is a process: from its first byte on somebody can read
// it, whoever is killed. No pipes: fork says why.
func (h *Host) pipe(m protocol.Message) *process.Pipes {
	pipes, err := process.OpenPipes(len(m.Files) > 0)
	if err != nil {
		return nil
	}
	h.mu.Lock()
	c := h.worker
	h.mu.Unlock()
	if c != nil {
		stdout, stderr := pipes.Output()
		// An error means that the worker is gone; the next one finds the process.
		_ = c.Send(protocol.Message{Kind: protocol.Piped, Attempt: m.Attempt, Files: []*os.File{stdout, stderr}})
	}
	return pipes
}

// fork starts the process and enters it; or it writes down why specOf said that there is none.
func (h *Host) fork(m protocol.Message, spec process.Spec, refused error) (*held, protocol.Record) {
	failed := func(err error) (*held, protocol.Record) {
		protocol.CloseAll(m.Files)
		spec.Pipes.Close()
		f := &protocol.Failure{Message: err.Error()}
		var start *process.StartError
		if errors.As(err, &start) {
			f.Reason, f.Errno = start.Reason, start.Errno
		}
		return nil, protocol.Record{Failure: f}
	}
	if refused != nil {
		return failed(refused)
	}
	spec.Pipes = h.pipe(m)
	h.family.forking.RLock()
	defer h.family.forking.RUnlock()
	p, group, err := h.begin(m, spec)
	if err != nil {
		return failed(err)
	}
	e := &held{released: make(chan struct{}), process: p, group: group, folder: m.Folder, record: protocol.Record{
		PID: p.PID, StartedAt: p.StartedAt, Boot: process.BootID(), Ticks: process.StartTicks(p.PID), Groups: group.Folders(),
	}}
	if len(m.Files) > 0 {
		e.document = m.Files[0]
	}
	h.mu.Lock()
	h.held[m.Attempt] = e
	h.family.enter(e.process.PID)
	h.mu.Unlock()
	return e, e.record
}

// begin makes the attempt's control group and starts the process in it. A group that nothing was to be limited by is left out where it
// cannot be had.
func (h *Host) begin(m protocol.Message, spec process.Spec) (*process.Process, *cgroup.Group, error) {
	limits := cgroup.Limits{
		MemoryBytes: spec.Limits.GetMemoryBytes(), CPUMillis: spec.Limits.GetCpuMillis(), Processes: spec.Limits.GetProcesses(),
	}
	group, err := h.groups.New(filepath.Base(m.Folder), limits)
	if err != nil {
		return nil, nil, process.Unavailable(errnoOf(err), "%s", err)
	}
	spec.Join = group.Join()
	if spec.Cgroup, err = group.Open(); err != nil {
		group.Remove()
		if group = nil; limits != (cgroup.Limits{}) {
			return nil, nil, process.Unavailable(errnoOf(err), "the control group cannot be opened: %v", err)
		}
	}
	p, err := process.Start(spec)
	if spec.Cgroup == nil {
		if err != nil {
			group.Remove()
		}
		return p, group, err
	}
	_ = spec.Cgroup.Close()
	if err == nil {
		return p, group, nil
	}
	group.Remove()
	if limits != (cgroup.Limits{}) {
		return nil, nil, err
	}
	// Was it the group? An old kernel has no clone3(2), and a filter may forbid it.
	spec.Cgroup = nil
	p, second := process.Start(spec)
	if second == nil {
		h.groups.GiveUpV2(err)
	}
	return p, nil, second
}

// started hands out the pipes: stdout, stderr, and, while there is something to write, stdin and its document. It says how the process
// ended, if it has.
func (h *Host) started(p *held) protocol.Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	files := []*os.File{p.process.Stdout, p.process.Stderr}
	if p.document != nil {
		files = append(files, p.process.Stdin, p.document)
	}
	return protocol.Message{Kind: protocol.Started, Record: &p.record, Exit: p.exit, Files: files}
}

// gone says what a former supervisor wrote down.
func gone(folder string) protocol.Message {
	m := protocol.Message{Kind: protocol.Gone}
	_ = ReadRecord(filepath.Join(folder, protocol.StartingFile), &m.Record)
	_ = ReadRecord(filepath.Join(folder, protocol.ExitFile), &m.Exit)
	return m
}

// ReadRecord reads one of the supervisor's files.
func ReadRecord[T any](path string, into **T) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	*into = v
	return nil
}

func (h *Host) signal(m protocol.Message) protocol.Message {
	h.mu.Lock()
	p := h.held[m.Attempt]
	h.mu.Unlock()
	answer := protocol.Message{Kind: protocol.Done}
	if p == nil || p.isReaped(h) {
		answer.Kind = protocol.Gone
		return answer
	}
	err := p.process.SignalGroup(m.Signal)
	if m.Signal == syscall.SIGKILL && p.group != nil {
		// Also those who left the session. Without them the group could be empty, which is no error then.
		if killErr := p.group.Kill(); killErr != nil {
			err = errors.Join(err, killErr)
		} else if errors.Is(err, syscall.ESRCH) {
			err = nil
		}
	}
	switch {
	case errors.Is(err, os.ErrProcessDone):
		answer.Kind = protocol.Gone
	case err != nil:
		answer.Error, answer.Errno = err.Error(), errnoOf(err)
	}
	return answer
}

// stdinDone closes our copies, so that the process sees the end of its standard input.
func (h *Host) stdinDone(attempt string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.held[attempt]; p != nil && p.document != nil {
		_, _ = p.process.Stdin.Close(), p.document.Close()
		p.document = nil
	}
}

// release lets go of a process: it is reaped when it has ended.
func (h *Host) release(attempt string) {
	h.reap(attempt)
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.held[attempt]
	if p == nil {
		return
	}
	delete(h.held, attempt)
	_, _ = p.process.Stdout.Close(), p.process.Stderr.Close()
	close(h.changed)
	h.changed = make(chan struct{})
}

// reap lets go of a process, and keeps the pipes that it left to others. From here on its number may be anybody's.
func (h *Host) reap(attempt string) {
	h.stdinDone(attempt)
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.held[attempt]
	if p == nil || p.reaped {
		return
	}
	p.reaped = true
	close(p.released)
	p.process.Release()
	p.group.Remove()
	h.family.leave(p.process.PID)
}

func (p *held) isReaped(h *Host) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return p.reaped
}

// Idle returns a channel that is closed when there was no process for a moment.
func (h *Host) Idle() <-chan struct{} {
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		for {
			h.mu.Lock()
			n, changed := len(h.held), h.changed
			h.mu.Unlock()
			if n == 0 {
				return
			}
			<-changed
		}
	}()
	return idle
}

// Close kills every process that was not released, with its group, and lets go of it.
func (h *Host) Close() {
	h.mu.Lock()
	var left []string
	for attempt, p := range h.held {
		if !p.reaped {
			_ = p.process.SignalGroup(syscall.SIGKILL)
			_ = p.group.Kill()
			h.logger.Warn("process is killed, since its runner is over", "attempt", attempt)
		}
		left = append(left, attempt)
	}
	h.mu.Unlock()
	for _, attempt := range left {
		h.release(attempt)
	}
	h.waits.Wait()
	h.groups.Close()
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}
