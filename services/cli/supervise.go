package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// supervise runs the supervisor of "verbatim runner" with a worker of the same flags.
func supervise(ctx context.Context, s *session, logger *slog.Logger, groups *cgroup.Root) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	args := slices.Clone(s.args)
	at := slices.Index(args, "runner")
	if at < 0 {
		return errors.New("the command line has no word \"runner\"")
	}
	args[at] = "runner-worker"
	c := supervisor.Config{
		Program: program, Worker: append([]string{os.Args[0]}, args...),
		Stderr: os.Stderr, StopTime: stopTime, Groups: groups, Logger: logger,
	}
	// The variables are for this process alone, and say something else to the next.
	text, state := os.Getenv(wiring.ParentVariable), os.Getenv(supervisor.StateVariable)
	if err := errors.Join(os.Unsetenv(wiring.ParentVariable), os.Unsetenv(supervisor.StateVariable)); err != nil {
		return err
	}
	c.Environment = os.Environ()
	if state != "" {
		fd, err := strconv.Atoi(state)
		if err != nil || fd < 3 {
			return fmt.Errorf("%s is no descriptor's number", state)
		}
		c.State = os.NewFile(uintptr(fd), "state")
	}
	renew := make(chan struct{}, 1)
	stopListening := onRenewal(renew)
	defer stopListening()
	c.Renew, c.Accepts = renew, func(ctx context.Context, version int) error { return acceptsState(ctx, program, version) }
	if text != "" {
		conn, err := inherited(text)
		if err != nil {
			return err
		}
		defer conn.Close()
		orphaned := make(chan struct{})
		go func() {
			defer close(orphaned)
			for err := error(nil); err == nil; {
				_, err = conn.Receive() // Nothing is ever said; it ends with who started us.
			}
		}()
		c.Orphaned = orphaned
		c.Ready = func() { _ = conn.Send(protocol.Message{Kind: protocol.Ready}) }
		c.Keep = func() ([]string, []*os.File, error) {
			f, err := conn.File()
			if err != nil {
				return nil, nil, err
			}
			return []string{wiring.ParentVariable}, []*os.File{f}, nil
		}
	}
	err = supervisor.Run(ctx, c)
	var failed *supervisor.WorkerError
	if errors.As(err, &failed) && failed.Code > 0 {
		return exitCode(failed.Code) // It has said why.
	}
	return err
}

// onRenewal passes on each USR2, which asks the supervisor to execute itself anew.
func onRenewal(to chan<- struct{}) (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGUSR2)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case to <- struct{}{}:
				default: // One is asked for already.
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// acceptsState asks a program whether it can take over from this one.
func acceptsState(ctx context.Context, program string, version int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, program)
	c.Args = []string{os.Args[0], "runner-takes-over", strconv.Itoa(version)}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s says %q: %w", program, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// takesOverCommand is how a supervisor asks a newer program, before it becomes that.
type takesOverCommand struct {
	Version int `arg:""`
}

// Run is called by kong.
func (c *takesOverCommand) Run() error {
	if c.Version != supervisor.StateVersion {
		return fmt.Errorf("a state of version %d is not known, only %d", c.Version, supervisor.StateVersion)
	}
	return nil
}

// inherited takes over a socket by its number.
func inherited(number string) (*protocol.Conn, error) {
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s is no descriptor's number", number)
	}
	return protocol.New(os.NewFile(uintptr(fd), "inherited"))
}

// without leaves the variables out whose names begin so.
func without(environment []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(environment), func(v string) bool { return strings.HasPrefix(v, prefix) })
}

// workerCommand is what the supervisor starts. It takes the flags of runnerCommand.
type workerCommand struct{ runnerCommand }

// Run is called by kong.
func (c *workerCommand) Run(ctx context.Context, s *session) error {
	conn, err := inherited(strconv.Itoa(supervisor.WorkerSocket))
	if err != nil {
		return fmt.Errorf("runner-worker is started by runner: %w", err)
	}
	keepPrivate() // It starts no processes, so nobody inherits that.
	client := supervisor.NewClient(conn)
	return s.serve(ctx, c.kafkaFlags, c.healthFlags, func(b wiring.Base) (lifecycle.Service, error) {
		config, err := c.configure(b)
		if err != nil {
			return nil, err
		}
		return wiring.Worker(b, config, client), nil
	})
}

// runner is the runner of "verbatim up": a supervisor beside it, so that neither the end of this process nor a defect in it
// takes processes and their output along.
func (c *upCommand) runner(b wiring.Base) lifecycle.Service {
	// What the environment says about other brokers is not for this one.
	return &wiring.RunnerProcess{Base: b, Family: c.family, Environment: without(os.Environ(), "VERBATIM_"), Arguments: []string{
		"runner", "--kafka", strings.Join(b.Kafka.Brokers, ","), "--topic-prefix=" + b.Kafka.TopicPrefix, "--data", c.Data, "--runner-id", c.runnerFlags.ID,
		"--slots", strconv.Itoa(c.Slots), "--grace", c.Grace.String(), "--late-output", c.LateOutput.String(), "--spool-limit", strconv.FormatUint(uint64(c.SpoolLimit), 10), "--log-level", c.log.Level, "--log-format", c.log.Format,
	}}
}
