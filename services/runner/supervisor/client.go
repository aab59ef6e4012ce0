package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// ErrEnded says that the supervisor is gone, and with it the exit status of what it ran.
var ErrEnded = errors.New("supervisor ended, and the exit status with it")

// ErrNoDescriptors says that the process is there, and that this worker has too few descriptors free to take its pipes.
var ErrNoDescriptors = errors.New("no descriptors are free for the pipes of a process that runs")

// Client is the worker's side. It is safe for concurrent use.
type Client struct {
	conn *protocol.Conn
	gone chan struct{} // Closed when the supervisor is.

	mu      sync.Mutex
	last    uint64
	answers map[uint64]chan protocol.Message
	exits   map[string]chan protocol.Exit
	piped   map[string][]*os.File // Of processes that are being started.
}

// NewClient takes over a connection and reads it until the supervisor ends or Close is called.
func NewClient(c *protocol.Conn) *Client {
	s := &Client{conn: c, gone: make(chan struct{}), answers: make(map[uint64]chan protocol.Message), exits: make(map[string]chan protocol.Exit), piped: make(map[string][]*os.File)}
	go s.receive()
	return s
}

// Gone is closed when the supervisor has ended.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Close ends the connection.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.gone
	return err
}

func (c *Client) receive() {
	defer close(c.gone)
	for {
		m, err := c.conn.Receive()
		if err != nil {
			return
		}
		c.take(m)
	}
}

func (c *Client) take(m protocol.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait, answer := c.exits[m.Attempt], c.answers[m.Number]
	switch {
	case m.Kind == protocol.Exited:
		if wait != nil && m.Exit != nil {
			select {
			case wait <- *m.Exit:
			default: // Told twice.
			}
		}
	case m.Kind == protocol.Piped && wait != nil && len(m.Files) == 2:
		protocol.CloseAll(c.piped[m.Attempt])
		c.piped[m.Attempt] = m.Files
	case answer != nil:
		delete(c.answers, m.Number)
		answer <- m
	default:
		protocol.CloseAll(m.Files)
	}
}

// ask sends a request and waits for its answer. It does not give up while the supervisor lives, which answers at once.
func (c *Client) ask(m protocol.Message) (protocol.Message, error) {
	answer := make(chan protocol.Message, 1)
	c.mu.Lock()
	c.last++
	m.Number = c.last
	c.answers[m.Number] = answer
	c.mu.Unlock()
	if err := c.conn.Send(m); err != nil {
		c.mu.Lock()
		delete(c.answers, m.Number)
		c.mu.Unlock()
		return protocol.Message{}, fmt.Errorf("%w (%w)", ErrEnded, err)
	}
	select {
	case got := <-answer:
		return got, nil
	case <-c.gone:
		select {
		case got := <-answer:
			return got, nil
		default:
			return protocol.Message{}, ErrEnded
		}
	}
}

// Ready says that this worker takes work.
func (c *Client) Ready() error {
	_, err := c.ask(protocol.Message{Kind: protocol.Ready})
	return err
}

// Process is a process that a supervisor holds. Its methods are safe for concurrent use.
type Process struct {
	protocol.Record
	// Stdin and Document are nil when there is nothing to write (any more). All files are the caller's to close.
	Stdout, Stderr, Stdin, Document *os.File

	client  *Client
	attempt string
	exits   chan protocol.Exit
	watch   watch
	release sync.Once
}

// Start starts the process of an attempt, or finds the one that was started before. An error is a *process.StartError when
// there is no process and never will be, a *GoneError when there was one, and else one after which it may be asked again; after
// ErrNoDescriptors it has to be, since nobody reads what the process writes.
func (c *Client) Start(attempt, folder string, command protocol.Command, document *os.File) (*Process, error) {
	exits := make(chan protocol.Exit, 1)
	c.mu.Lock()
	c.exits[attempt] = exits
	c.mu.Unlock()
	m := protocol.Message{Kind: protocol.Start, Attempt: attempt, Folder: folder, Command: &command}
	if document != nil {
		m.Files = []*os.File{document}
	}
	answer, err := c.ask(m)
	c.mu.Lock()
	piped := c.piped[attempt]
	delete(c.piped, attempt)
	c.mu.Unlock()
	if err != nil && piped != nil {
		c.forget(attempt)
		gone := &GoneError{Stdout: piped[0], Stderr: piped[1]}
		_ = ReadRecord(filepath.Join(folder, protocol.StartingFile), &gone.Record)
		_ = ReadRecord(filepath.Join(folder, protocol.ExitFile), &gone.Exit)
		if gone.Record != nil && gone.Record.Failure != nil {
			protocol.CloseAll(piped)
			return nil, failed(gone.Record.Failure)
		}
		return nil, gone
	}
	protocol.CloseAll(piped) // The answer brings them again, or there is no process.
	if err != nil {
		c.forget(attempt)
		return nil, err
	}
	if answer.Kind == protocol.Started && answer.Record != nil && len(answer.Files) >= 2 {
		p := &Process{Record: *answer.Record, client: c, attempt: attempt, exits: exits, Stdout: answer.Files[0], Stderr: answer.Files[1]}
		if len(answer.Files) == 4 {
			p.Stdin, p.Document = answer.Files[2], answer.Files[3]
		}
		p.watch = openWatch(p.PID)
		if answer.Exit != nil {
			select {
			case exits <- *answer.Exit:
			default: // It was told in the meantime.
			}
		}
		return p, nil
	}
	protocol.CloseAll(answer.Files)
	c.forget(attempt)
	switch {
	case answer.Kind == protocol.Started:
		return nil, fmt.Errorf("start attempt %s: %w", attempt, ErrNoDescriptors)
	case answer.Record != nil && answer.Record.Failure != nil:
		return nil, failed(answer.Record.Failure)
	case answer.Kind == protocol.Gone:
		return nil, &GoneError{Record: answer.Record, Exit: answer.Exit}
	default:
		return nil, fmt.Errorf("start attempt %s: %w", attempt, errors.Join(errors.New(answer.Error), asError(answer.Errno)))
	}
}

func failed(f *protocol.Failure) error {
	return &process.StartError{Reason: f.Reason, Errno: f.Errno, Message: f.Message}
}

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func (c *Client) forget(attempt string) {
	c.mu.Lock()
	delete(c.exits, attempt)
	c.mu.Unlock()
}

// GoneError says that a supervisor that is no more started the attempt, and what it left behind.
type GoneError struct {
	Record *protocol.Record // nil: it ended in the middle of the start.
	Exit   *protocol.Exit   // nil: it ended before the process.
	// Stdout and Stderr are the pipes of a process that the supervisor was starting when it ended; nil else. They are
	// the caller's to close.
	Stdout, Stderr *os.File
}

func (e *GoneError) Error() string { return ErrEnded.Error() }

func (e *GoneError) Unwrap() error { return ErrEnded }

// Wait returns how the process ended. When the supervisor ends, it waits until the process has ended, and returns ErrEnded.
func (p *Process) Wait(ctx context.Context) (process.Exit, error) {
	select {
	case e := <-p.exits:
		return Decode(e)
	case <-ctx.Done():
		return process.Exit{}, context.Cause(ctx)
	case <-p.client.gone:
	}
	select {
	case e := <-p.exits:
		return Decode(e)
	default:
	}
	p.watch.untilEnded(ctx)
	return process.Exit{}, ErrEnded
}

// Ended is Wait for a process of which it is known already that it has ended; false when it is not.
func (p *Process) Ended() (exit process.Exit, err error, known bool) { //nolint:revive,staticcheck // As Wait, and whether.
	select {
	case e := <-p.exits:
		exit, err = Decode(e)
		return exit, err, true
	default:
		return process.Exit{}, nil, false
	}
}

// Decode turns an exit record into what process.Wait would have said.
func Decode(e protocol.Exit) (process.Exit, error) {
	if e.WaitError != "" {
		return process.Exit{}, &waitError{e.WaitError, e.Errno}
	}
	x := process.Exit{Code: e.Code, Signal: e.Signal, CoreDumped: e.CoreDumped, EndedAt: e.EndedAt, OOMKills: e.OOMKills, OOMEvidence: e.OOMEvidence, Usage: &executionv1.ResourceUsage{}}
	if err := proto.Unmarshal(e.Usage, x.Usage); err != nil {
		x.Usage = nil // The status is worth more.
	}
	return x, nil
}

type waitError struct {
	text  string
	errno syscall.Errno
}

func (e *waitError) Error() string { return e.text }

func (e *waitError) Unwrap() error { return asError(e.errno) }

// SignalGroup signals the process's group; os.ErrProcessDone when it must not be signalled any more. It also works without the
// supervisor, while the process itself lives.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	answer, err := p.client.ask(protocol.Message{Kind: protocol.Signal, Attempt: p.attempt, Signal: sig})
	switch {
	case err != nil && p.watch.lives():
		if sig == syscall.SIGKILL {
			_ = cgroup.Find(p.Groups).Kill()
		}
		return syscall.Kill(-p.PID, sig)
	case err != nil || answer.Kind == protocol.Gone:
		return os.ErrProcessDone
	case answer.Error != "":
		return errors.Join(errors.New(answer.Error), asError(answer.Errno))
	}
	return nil
}

// GroupHasOthers reports whether somebody else is in the process's group, or in its control group, once the process has ended.
func (p *Process) GroupHasOthers() (bool, error) {
	if cgroup.Find(p.Groups).Populated() {
		return true, nil
	}
	return process.GroupHasOthers(p.PID)
}

// StdinDone lets the supervisor close its copy of the pipe.
func (p *Process) StdinDone() {
	_, _ = p.client.ask(protocol.Message{Kind: protocol.StdinDone, Attempt: p.attempt})
}

// Release lets the supervisor reap the process and forget it.
//
// Calling it again, or after Reap, does nothing.
func (p *Process) Release() { p.release.Do(func() { p.letGo(protocol.Release) }) }

// Reap lets the supervisor reap the process, and keep the pipes: Start then gives them again.
func (p *Process) Reap() { p.release.Do(func() { p.letGo(protocol.Reap) }) }

func (p *Process) letGo(how protocol.Kind) {
	if _, err := p.client.ask(protocol.Message{Kind: how, Attempt: p.attempt}); err != nil {
		cgroup.Find(p.Groups).Remove() // Nobody else does it.
	}
	p.client.forget(p.attempt)
	p.watch.close()
}
