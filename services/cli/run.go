package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/telemetry"
)

// rowWait is how long --json waits for the row that the end of the execution makes.
const rowWait = 30 * time.Second

type runCommand struct {
	readFlags
	Timeout *time.Duration    `placeholder:"D" help:"End the process after this time (30s, 5m, 1h30m), counted from its start."`
	Grace   *time.Duration    `placeholder:"D" help:"Time between TERM and KILL when the process is ended. Default: the runner's."`
	Label   map[string]string `mapsep:"none" placeholder:"K=V" help:"Label to find the execution by. May be given again."`
	Env     map[string]string `mapsep:"none" placeholder:"K=V" help:"Environment variable for the process. May be given again. Never a secret."`
	Dir     string            `placeholder:"DIR" help:"Working directory on the runner. Default: this one when the server is on this machine, else a fresh empty one."`
	Stdin   string            `placeholder:"FILE|-" help:"What the process reads on its standard input: a file, or - for this command's own. At most 64 MiB. Default: nothing."`
	Secret  []string          `sep:"none" placeholder:"NAME=env:VAR|NAME=file:PATH" help:"Secret for the process, encrypted before it leaves this command. May be given again. See below."`
	limitFlags
	OutputLimit     *outputLimit   `placeholder:"SIZE|none" help:"How much of each output stream is kept when there is more: a fifth of it from the beginning, the rest (at most 8 MiB) from the end. The bytes between are counted and left out. Sizes are 500, 64K, 10MiB, 2G. Default: 10MiB."`
	Retries         int            `default:"0" placeholder:"N" help:"Try again up to N times, after the ends that --retry-on names."`
	RetryOn         []string       `placeholder:"END" help:"After which ends to try again: failed (an exit code other than 0, or a signal), timeout, lost (through no doing of its own: its runner is gone, and it may still run there). Default: failed,timeout."`
	RetryBackoff    *time.Duration `placeholder:"D" help:"Pause before the second attempt; it doubles with each further one, and is shortened by up to a half. Default: 1s."`
	RetryMaxBackoff *time.Duration `placeholder:"D" help:"The longest pause. Default: 5m."`
	JSON            bool           `name:"json" help:"Print only the row at the end, as one JSON object."`
	Detach          bool           `help:"Print the execution's id and do not wait for its end."`
	Argv            []string       `arg:"" passthrough:"partial" help:"Program and arguments, after --. No shell is involved."`
}

// Help is printed by kong below the flags.
func (runCommand) Help() string {
	return `The process's stdout goes to stdout and its stderr to stderr while it runs, byte for byte. Of a stream that is longer
than --output-limit the beginning is shown while the process runs and the end when it has ended, since only then it is known
which bytes are the last ones.
Ctrl-C asks to stop the execution and waits for its end; a second Ctrl-C leaves it alone.

A secret's value comes from an environment variable of this command or from a file, byte for byte. It leaves this command
encrypted for the runners that live now, and reaches the process on its standard input alone, as one line of JSON:
{"parameters":{},"secrets":{"NAME":"value"}}. In its output every value of 4 bytes or more is masked with asterisks, also when it
is split over writes, in base64, percent-encoded or in a JSON string. Secrets have at most 64 KiB together. --secret
and --stdin exclude each other.

With --retries every attempt is shown, one after the other, with a line on stderr between them; the exit code is that of the last one.
Ctrl-C in a pause ends the retries.

Exit codes: the process's own; 128+N when signal N killed it; 124 when it ran into its timeout; 126 when the
command cannot be executed and 127 when there is none of that name; 125 when Verbatim itself failed or the end of
the process is not known.`
}

func (c *runCommand) request(s *session) (r api.SubmitRequest, err error) {
	argv := c.Argv
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return api.SubmitRequest{}, usageError{errors.New(`there is nothing to run: expected "-- <argv> ..."`)}
	}
	if argv[0] == "" {
		return api.SubmitRequest{}, usageError{errors.New("the command is empty")}
	}
	r = api.SubmitRequest{
		Command: &api.Command{Argv: argv, Environment: c.Env, Directory: c.Dir},
		Labels:  c.Label,
	}
	r.OutputLimitBytes = c.OutputLimit.request()
	if u, err := user.Current(); err == nil {
		r.RequestedBy = u.Username
	}
	if c.Timeout != nil {
		if *c.Timeout <= 0 {
			return r, usageError{fmt.Errorf("--timeout is %s, it must be positive", *c.Timeout)}
		}
		r.Timeout = c.Timeout.String()
	}
	if c.Grace != nil {
		if *c.Grace < 0 {
			return r, usageError{fmt.Errorf("--grace is %s, it must not be negative", *c.Grace)}
		}
		r.Grace = c.Grace.String()
	}
	if r.Retry, err = c.retry(); err != nil {
		return r, usageError{err}
	}
	limits, err := c.limits()
	if err != nil {
		return r, usageError{err}
	}
	r.Limits = limits
	switch {
	case c.Dir != "" && !filepath.IsAbs(c.Dir):
		return r, usageError{fmt.Errorf("--dir %q is not absolute: it is a folder on the runner", c.Dir)}
	case c.Dir == "" && c.isLocal():
		dir, err := os.Getwd()
		if err != nil {
			return r, fmt.Errorf("find the working directory: %w (say one with --dir)", err)
		}
		r.Command.Directory = dir
	}
	return r, nil
}

// Run is called by kong.
func (c *runCommand) Run(ctx context.Context, s *session) error {
	request, err := c.request(s)
	if err != nil {
		return err
	}
	stdin, err := c.openStdin(s.stdin)
	if err != nil {
		return err
	}
	defer stdin.close()
	secrets, err := c.readSecrets(s.stderr)
	if err != nil {
		return err
	}
	c.ReadWait = cmp.Or(c.ReadWait, rowWait)
	api, err := c.client(s)
	if err != nil {
		return err
	}
	defer api.Close()
	if err := errors.Join(stdin.send(ctx, api, &request), sealSecrets(ctx, api, secrets, &request)); err != nil {
		return err
	}
	accepted, err := api.Submit(ctx, request)
	if err != nil {
		return err
	}
	id := accepted.ExecutionID
	switch {
	case c.Detach && c.JSON:
		return writeJSON(s.stdout, accepted)
	case c.Detach:
		_, err := fmt.Fprintln(s.stdout, id)
		return err
	}
	if telemetry.IsTerminal(s.stderr) {
		fmt.Fprintf(s.stderr, "\033[2mexecution %s\033[0m\n", id)
	}
	f := follower{stdout: s.stdout, stderr: s.stderr, notices: s.stderr}
	if c.JSON {
		f.stdout, f.stderr = io.Discard, io.Discard
	}
	if err := c.follow(ctx, s, api, id, &f); err != nil {
		return err
	}
	if c.JSON {
		row, err := api.Get(context.WithoutCancel(ctx), id)
		if err != nil {
			return explain(err, id)
		}
		s.warnStale(row.Stale)
		if err := writeJSON(s.stdout, row.Raw); err != nil {
			return err
		}
	}
	return f.result(s.stderr)
}

// follow hands out the facts until the output is sealed. The first interrupt cancels the execution, the
// second one stops following.
func (c *runCommand) follow(ctx context.Context, s *session, api_ *client.Client, id string, f *follower) error {
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	following, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	go func() {
		select {
		case <-interrupts:
		case <-following.Done():
			return
		}
		fmt.Fprintf(s.stderr, "verbatim: stopping execution %s (once more leaves it alone)\n", id)
		if _, err := api_.Cancel(following, id, api.CancelRequest{Reason: "interrupted"}); err != nil && following.Err() == nil {
			fmt.Fprintf(s.stderr, "verbatim: %v\n", err)
		}
		select {
		case <-interrupts:
			stop(fmt.Errorf("left execution %s alone before its end: \"verbatim logs %s --follow\" follows it again", id, id))
		case <-following.Done():
		}
	}()
	for fact, err := range api_.Tail(following, id) {
		if err != nil {
			return err
		}
		if err := f.take(fact); err != nil {
			return err
		}
	}
	return errors.Join(context.Cause(following), f.finish())
}

// result says how the execution ended, as an exit code, and explains what the process could not say itself.
func (f *follower) result(stderr io.Writer) error {
	f.warn(stderr)
	switch {
	case f.preparationFailed != nil:
		return errors.New(f.preparationFailed.GetMessage())
	case f.startFailed != nil:
		fmt.Fprintf(stderr, "verbatim run: %s\n", f.startFailed.GetMessage())
		switch f.startFailed.GetReason() {
		case executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND:
			return exitCode(127)
		case executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_EXECUTABLE:
			return exitCode(126)
		default:
			return exitCode(exitVerbatim)
		}
	case f.termination == executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT:
		return exitCode(124)
	case f.exited != nil:
		if signal := f.exited.GetSignal(); signal != nil {
			return exitCode(128 + int(signal.GetNumber()))
		}
		if code := f.exited.GetExitCode(); code != 0 {
			return exitCode(code)
		}
		return nil
	case f.waitFailed != nil:
		return fmt.Errorf("how the process ended is not known: %s", f.waitFailed.GetCause())
	case f.lost != nil:
		return fmt.Errorf("runner %s fell silent; how the process ended is not known", cmp.Or(f.lost.GetRunner(), "(unknown)"))
	default:
		return errors.New("the execution ended and did not say how")
	}
}
