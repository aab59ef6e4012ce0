package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// Config says what a supervisor does.
type Config struct {
	// Program is the worker's file, Worker its command line, Environment its environment. It finds its socket as
	// descriptor WorkerSocket.
	Program     string
	Worker      []string
	Environment []string
	// Stderr is where the worker writes its log. Its standard output goes there too.
	Stderr *os.File
	// StopTime bounds how long a worker may take to stop; then it is killed, which loses nothing.
	StopTime time.Duration
	// Ready, if not nil, is called each time a worker takes work.
	Ready func()
	// Orphaned, if not nil, is closed when whoever started the supervisor is gone, and most likely the broker with it: what runs
	// is ended, and nobody waits for its facts to be published. They are, when the runner starts again.
	Orphaned <-chan struct{}
	// Renew, if not nil, asks for the program to be executed anew, as a newer version of itself (renew_linux.go): Program, with this
	// process's own arguments. Accepts, if not nil, asks that program whether it can take over a state of a version.
	Renew   <-chan struct{}
	Accepts func(ctx context.Context, version int) error
	// Keep, if not nil, gives more descriptors to keep then, and for each the variable that says its number.
	Keep func() (variables []string, files []*os.File, err error)
	// State, if not nil, is what a former self has handed on.
	State *os.File
	// Groups, if not nil, is where attempts get their control groups.
	Groups *cgroup.Root
	Logger *slog.Logger
}

// WorkerSocket is the number of the worker's end of the socket.
const WorkerSocket = 3

// How long a worker's death is waited for before the next one starts: doubled each time, from the first to the last,
// and back to the first when one was ready.
const firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second

// WorkerError is how a worker ended that never took work and left nothing to look after: a wrong configuration, or no
// broker there. Starting it again would only say the same again.
type WorkerError struct{ Code int }

func (e *WorkerError) Error() string { return fmt.Sprintf("worker ended with exit code %d", e.Code) }

// run is one supervisor.
type run struct {
	Config
	host  *Host
	ready bool // Some worker was.
	// ignoreAgain ends handleIgnored.
	ignoreAgain func()
}

// Run supervises until the context ends; then it lets the worker stop, and ends what is left. When workers fail then, it ends what is left
// after StopTime and says how the last one failed.
func Run(ctx context.Context, c Config) error {
	r := &run{Config: c, host: NewHost(c.Logger), ignoreAgain: handleIgnored()}
	defer func() { r.ignoreAgain() }()
	r.host.groups = c.Groups
	if c.State != nil {
		if err := r.host.restore(c.State); err != nil {
			return err
		}
		r.ready = true // Some worker was.
	}
	c.Groups.Sweep(r.host.groupIsHeld)
	r.host.UseGroups(c.Groups)
	stopReaping := r.reap()
	defer stopReaping()
	defer r.host.Close()
	pause := firstPause
	var last time.Time // When nobody is waited for any more.
	for {
		became, err := r.worker(ctx)
		if became {
			pause, r.ready = firstPause, true
		}
		if errors.Is(err, errRenewed) {
			r.ignoreAgain() // What it is then finds them as this one did.
			c.Logger.ErrorContext(ctx, "supervisor goes on as it is", "error", r.renew(ctx))
			r.ignoreAgain = handleIgnored()
			continue
		}
		var failed *WorkerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &failed) && !r.ready && r.host.count() == 0:
			return err
		case !r.leaving(ctx):
		case last.IsZero():
			last = time.Now().Add(r.StopTime)
		case time.Now().After(last):
			return fmt.Errorf("what runs is killed, since no worker ends it: %w", err)
		}
		c.Logger.WarnContext(ctx, "worker ended, another one is started", "error", err, "wait", pause)
		if !r.wait(ctx, pause) && r.host.count() == 0 {
			return nil // The spool keeps what is not published.
		}
		pause = min(2*pause, lastPause)
	}
}

// leaving reports whether it is time to end: it was told so, or who started it is gone.
func (r *run) leaving(ctx context.Context) bool {
	select {
	case <-r.Orphaned:
		return true
	default:
		return ctx.Err() != nil
	}
}

// wait waits before the next worker is started; less, and false, when the context ends or has ended.
func (r *run) wait(ctx context.Context, pause time.Duration) bool {
	if ctx.Err() != nil {
		time.Sleep(firstPause) // A process cannot be left alone for long: a worker ends it.
		return false
	}
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// errRenewed says that the worker was killed to execute the program anew.
var errRenewed = errors.New("the program is to be executed anew")

// groupIsHeld reports whether a control group is that of a process that is held.
func (h *Host) groupIsHeld(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.held {
		for _, folder := range p.record.Groups {
			if !p.reaped && filepath.Base(folder) == name {
				return true
			}
		}
	}
	return false
}

func (h *Host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

// worker runs one worker to its end. No error: it was told to stop and did.
func (r *run) worker(ctx context.Context) (ready bool, err error) {
	conn, theirs, err := protocol.Pair()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	command, err := r.start(theirs)
	_ = theirs.Close()
	if err != nil {
		return false, fmt.Errorf("start worker: %w", err)
	}
	up := make(chan struct{}, 1)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = r.host.Serve(conn, func() {
			select {
			case up <- struct{}{}:
			default:
			}
			if r.Ready != nil {
				r.Ready()
			}
		})
	}()
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	err = r.follow(ctx, command.Process, ended)
	r.host.family.leave(command.Process.Pid)
	_ = conn.Close()
	<-served
	select {
	case <-up:
		ready = true
	default:
	}
	return ready, err
}

// start starts a worker: from Program, which may be a newer one than this, or, when that is gone or half written, from what this process runs.
func (r *run) start(socket *os.File) (command *exec.Cmd, err error) {
	for _, program := range []string{r.Program, ownProgram} {
		command = exec.Command(program) //nolint:noctx // It ends when follow says so, with time to stop cleanly.
		command.Args = r.Worker
		command.Env, command.Stdout, command.Stderr = r.Environment, r.Stderr, r.Stderr
		command.ExtraFiles = []*os.File{socket}
		// A signal to the supervisor's group is the supervisor's affair.
		command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var failed error
		process.Unblocked(func() { failed = r.host.family.Start(command) })
		if failed == nil {
			return command, nil
		}
		err = errors.Join(err, failed)
	}
	return nil, err
}

// ownProgram is this process's program, whatever became of its file (proc_pid_exe(5)).
const ownProgram = "/proc/self/exe"

// follow waits for a worker's end, and brings it about when it is time.
func (r *run) follow(ctx context.Context, p *os.Process, ended <-chan error) error {
	stop, orphaned, renew, renewed := ctx.Done(), r.Orphaned, r.Renew, false
	var late <-chan time.Time
	var idle <-chan struct{}
	stopping := false
	begin := func() {
		if !stopping {
			stopping, late = true, time.After(r.StopTime)
			_ = p.Signal(syscall.SIGTERM) // It may have ended.
		}
	}
	for {
		select {
		case err := <-ended:
			if renewed && !stopping {
				return errRenewed
			}
			if stopping && (err == nil || r.host.count() == 0) {
				return nil
			}
			return describe(err)
		case <-stop:
			stop = nil
			begin()
		case <-orphaned:
			orphaned = nil
			begin()
			idle = r.host.Idle()
		case <-renew:
			if !stopping {
				renewed = true
				_ = p.Kill() // It may have ended.
			}
		case <-idle: // Everything is in the spool.
			idle = nil
			_ = p.Kill()
		case <-late:
			late = nil
			r.Logger.WarnContext(ctx, "worker does not stop in time and is killed; what it has not published is kept")
			_ = p.Kill()
		}
	}
}

func describe(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Exited() {
			return &WorkerError{Code: status.ExitStatus()}
		}
		return fmt.Errorf("worker was killed: %w", err)
	}
	if err == nil {
		return &WorkerError{}
	}
	return err
}
