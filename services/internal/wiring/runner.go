package wiring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/claim"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/retry"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// worker is a runner whose processes a supervisor holds.
type worker struct {
	*node
	data       string
	supervisor *supervisor.Client
	failed     chan error
	stopping   chan struct{}
}

// Worker returns the runner as a supervisor's worker.
func Worker(b Base, c runner.Config, s *supervisor.Client) lifecycle.Service {
	c.Supervisor = s
	return &worker{node: runnerNode(b, c), data: c.DataDir, supervisor: s, failed: make(chan error, 2), stopping: make(chan struct{})}
}

// Start implements lifecycle.Service.
func (w *worker) Start(ctx context.Context) error {
	if err := w.node.Start(ctx); err != nil {
		return err
	}
	go func() {
		select {
		case <-w.supervisor.Gone():
			w.failed <- supervisor.ErrEnded
		case err := <-w.node.Failed():
			w.failed <- err
		}
	}()
	if w.stopStart == nil {
		return w.supervisor.Ready()
	}
	go func() {
		select {
		case <-w.joined:
			_ = w.supervisor.Ready() // An error: it is gone.
		case <-w.stopping:
		}
	}()
	return nil
}

// HealthFile is where a worker writes down, in its data folder, on which host:port it answers for its health.
const HealthFile = "health"

// ServesHealth is told where the worker answers for its health.
func (w *worker) ServesHealth(address string) error {
	if err := journal.WriteFile(filepath.Join(w.data, HealthFile), []byte(address+"\n")); err != nil {
		return fmt.Errorf("write down the health address: %w", err)
	}
	return nil
}

// Failed implements lifecycle.Failing.
func (w *worker) Failed() <-chan error { return w.failed }

// Stop implements lifecycle.Service.
func (w *worker) Stop(ctx context.Context) error {
	close(w.stopping)
	err := w.node.Stop(ctx)
	_ = w.supervisor.Close() // It may be gone.
	return err
}

// openRunner waits until a former worker that still finishes what it has lets go of the data folder.
func openRunner(ctx context.Context, b Base, c runner.Config, p *kafka.Publisher) (*runner.Runner, error) {
	for waited := false; ; {
		r, err := runner.New(c, p, kafka.CommitSync)
		if !errors.Is(err, runner.ErrLocked) {
			return r, err
		}
		if !waited {
			waited = true
			b.Logger.WarnContext(ctx, "another runner still works on the data folder, waiting for it", "folder", c.DataDir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// goOn lets a runner learn the cancels that there are, and then go on with the rest of what a former worker left. A runner that has
// something to look after already tries until it works; only the context ends it.
func goOn(ctx context.Context, b Base, c runner.Config, r *runner.Runner, busy bool) (_ *control, err error) {
	var known *control
	try := func() (err error) {
		if known == nil {
			leaveForFormer(ctx, b, c.DataDir)
			if known, err = startControl(ctx, b, r, c.ID); err != nil {
				return err
			}
		}
		return r.Recover(ctx)
	}
	if busy {
		err = retry.Until(ctx, b.Logger, "go on with what a former worker left", try)
	} else {
		err = try()
	}
	if err != nil && known != nil {
		err = errors.Join(err, known.stop())
	}
	return known, err
}

// signature is what a runner signs its commits with.
func signature(id string) func(before kafka.Commit) string {
	return func(before kafka.Commit) string { return claim.Sign(before, id) }
}

// committed asks the broker whose a claim is of which the answer was lost. That the group has passed the
// message says that somebody claimed it, and the signature who it was. It does not for what is older than all that it tells
// apart, and what an older version committed: then it was another runner when the log has a fact of another one about the attempt.
func committed(b Base, id string) func(context.Context, journal.Launch) (runner.Whose, error) {
	return func(ctx context.Context, l journal.Launch) (runner.Whose, error) {
		if !l.Placed {
			return runner.Nobodys, nil
		}
		admin, err := kafka.NewAdmin(b.Kafka)
		if err != nil {
			return runner.Nobodys, err
		}
		defer admin.Close()
		commits, err := admin.Commits(ctx, "runner", events.TopicWork)
		last := commits[l.Partition]
		if err != nil || last.Offset <= l.Offset {
			return runner.Nobodys, err
		}
		other := false
		if owner := claim.Owner(last, l.Offset); owner != "" {
			other = owner != id
		} else if other, err = otherRunner(ctx, b, admin, "/verbatim/runner/"+id, l); err != nil {
			return runner.Nobodys, err
		}
		if other {
			return runner.Anothers, nil
		}
		return runner.Mine, nil
	}
}

// otherRunner looks for another runner's fact about an attempt.
func otherRunner(ctx context.Context, b Base, admin *kafka.Admin, source string, l journal.Launch) (bool, error) {
	// The clocks of this machine and the broker differ by less than this.
	const skew = 5 * time.Minute
	starts, err := admin.OffsetsAt(ctx, events.TopicExecutions, l.At.Add(-skew))
	if err != nil {
		return false, err
	}
	ends, err := admin.EndOffsets(ctx, events.TopicExecutions)
	if err != nil {
		return false, err
	}
	partition := kafka.PartitionFor([]byte(l.Execution), partitions())
	reader, err := kafka.NewPartitionReader(b.Kafka, events.TopicExecutions, partition, starts[partition])
	if err != nil {
		return false, err
	}
	defer reader.Close()
	for record, err := range reader.Until(ctx, ends[partition]) {
		if err != nil {
			return false, fmt.Errorf("read the log of facts: %w", err)
		}
		e, err := codec.FromMessage(record.Message())
		if err != nil || e.Subject != l.Execution || e.Attempt != l.Attempt {
			continue
		}
		if e.ID == events.ID(e.Subject, e.Attempt, "runner", e.Sequence) && e.Source != source {
			return true, nil
		}
	}
	return false, nil
}

// RunnerProcess is a runner's supervisor as a child process.
type RunnerProcess struct {
	Base
	// Arguments are those of the program, Environment is its environment.
	Arguments, Environment []string
	// Family enters it; nil when nobody reaps orphans here.
	Family *supervisor.Family

	process *exec.Cmd
	conn    *protocol.Conn
	ended   chan struct{}
	failed  chan error
}

// ParentVariable names the descriptor by which a supervisor sees the end of who started it, and says that it is ready.
const ParentVariable = "VERBATIM_RUNNER_PARENT"

// Start implements lifecycle.Service.
func (r *RunnerProcess) Start(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	conn, theirs, err := protocol.Pair()
	if err != nil {
		return err
	}
	c := exec.Command(program) //nolint:noctx // It ends when Stop says so, with time to stop cleanly.
	c.Args = append([]string{os.Args[0]}, r.Arguments...)
	c.Env = append(r.Environment, ParentVariable+"=3")
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	c.ExtraFiles = []*os.File{theirs}
	// Ctrl-C in a terminal is for this process, which stops the runner when it is its turn.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if r.Family != nil {
		err = r.Family.Start(c)
	} else {
		err = c.Start()
	}
	_ = theirs.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("start the runner's supervisor: %w", err), conn.Close())
	}
	r.process, r.conn, r.ended, r.failed = c, conn, make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(r.ended)
		if err := c.Wait(); err != nil {
			r.failed <- err
			return
		}
		r.failed <- errors.New("it stopped")
	}()
	ready := make(chan error, 1)
	go func() {
		_, err := conn.Receive()
		ready <- err
		for err == nil {
			_, err = conn.Receive() // It is ready again after a restart of its worker.
		}
	}()
	select {
	case err = <-ready:
		if errors.Is(err, io.EOF) {
			err = errors.New("the runner ended before it was ready")
		}
	case <-ctx.Done():
		err = fmt.Errorf("wait for the runner: %w", context.Cause(ctx))
	}
	if err != nil {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return errors.Join(err, r.Stop(stopping))
	}
	r.Checks.Add("runner", r.ready)
	return nil
}

func (r *RunnerProcess) ready(context.Context) error {
	select {
	case <-r.ended:
		return errors.New("stopped")
	default:
		return nil
	}
}

// Failed implements lifecycle.Failing.
func (r *RunnerProcess) Failed() <-chan error { return r.failed }

// Stop implements lifecycle.Service. When the context ends it lets go of the supervisor, which then ends what runs and
// keeps what is not published.
func (r *RunnerProcess) Stop(ctx context.Context) error {
	_ = r.process.Process.Signal(syscall.SIGTERM) // It may have ended.
	defer r.conn.Close()
	select {
	case <-r.ended:
	case <-ctx.Done():
		return fmt.Errorf("the runner does not stop: %w", context.Cause(ctx))
	}
	if code := r.process.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the runner ended with %s", r.process.ProcessState)
	}
	return nil
}
