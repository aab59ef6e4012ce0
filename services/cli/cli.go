// Package cli is the command line: one file per command. Main parses, validates and runs one command
// and returns the process's exit code, so that tests can run it as users do.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit codes. run has its own besides (see its help).
const (
	exitFailure = 1
	exitUsage   = 2
	// exitVerbatim is what run exits with when Verbatim failed and not the process.
	exitVerbatim = 125
)

const description = `Verbatim runs processes and never loses what they wrote.

Start everything on this machine with "verbatim up", then "verbatim run -- COMMAND".

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration. "verbatim run" exits with the process's own code.`

type grammar struct {
	Up      upCommand      `cmd:"" group:"Run it here:" help:"Run every service, an embedded Kafka and an embedded ClickHouse in this process."`
	Run     runCommand     `cmd:"" group:"Executions:" help:"Run a command and follow its output."`
	Get     getCommand     `cmd:"" group:"Executions:" help:"Show one execution's row."`
	List    listCommand    `cmd:"" group:"Executions:" help:"List executions, the newest first."`
	Logs    logsCommand    `cmd:"" group:"Executions:" help:"Write an execution's output, byte for byte."`
	Events  eventsCommand  `cmd:"" group:"Executions:" help:"Show an execution's events."`
	Cancel  cancelCommand  `cmd:"" group:"Executions:" help:"Ask to stop an execution."`
	Runners runnersCommand `cmd:"" group:"Executions:" help:"List the runners and what they run."`
	Query   queryCommand   `cmd:"" group:"Executions:" help:"Ask the database in SQL (read only)."`

	Preparer  preparerCommand  `cmd:"" group:"Services, each by itself:" help:"Turn requests into launch specs."`
	Runner    runnerCommand    `cmd:"" group:"Services, each by itself:" help:"Run processes and publish what they do."`
	Worker    workerCommand    `cmd:"" name:"runner-worker" hidden:"" help:"What \"runner\" starts: the part that talks to the broker."`
	TakesOver takesOverCommand `cmd:"" name:"runner-takes-over" hidden:"" help:"What \"runner\" asks a newer program before it becomes that."`
	Recorder  recorderCommand  `cmd:"" group:"Services, each by itself:" help:"Archive every event."`
	Projector projectorCommand `cmd:"" group:"Services, each by itself:" help:"Fold events into rows."`
	Gateway   gatewayCommand   `cmd:"" group:"Services, each by itself:" help:"Serve the HTTP API."`
	Setup     setupCommand     `cmd:"" group:"Services, each by itself:" help:"Create the topics and the tables; doing it again changes nothing."`

	Search searchCommand `cmd:"" group:"Looking back:" help:"Look for words in the output of all executions."`
	Debug  debugCommand  `cmd:"" group:"Looking back:" help:"Step through an execution's events and see what each did to its row."`
	Replay replayCommand `cmd:"" group:"Looking back:" help:"Rebuild rows from the events, and compare them with the live ones."`
	Import importCommand `cmd:"" group:"Looking back:" help:"Make facts of what a worker without Verbatim left behind."`
	Export exportCommand `cmd:"" group:"Looking back:" help:"Write events to a file that replay reads."`

	Cordon     cordonCommand     `cmd:"" group:"Operations:" help:"Let a runner take no more executions."`
	Uncordon   uncordonCommand   `cmd:"" group:"Operations:" help:"Let a runner take executions again."`
	Delete     deleteCommand     `cmd:"" group:"Operations:" help:"Make executions forgotten: their output, rows and archived events."`
	Retention  retentionCommand  `cmd:"" group:"Operations:" help:"Show what is stored of archive, rows and artifacts, and what a retention would remove."`
	Deadletter deadletterCommand `cmd:"" group:"Operations:" help:"Look after records that could not be handled."`

	Version versionCommand `cmd:"" help:"Print the version."`

	Log    logFlags        `embed:"" prefix:"log-"`
	Config kong.ConfigFlag `placeholder:"FILE" help:"JSON file with flags by name, e.g. {\"kafka\": \"broker:9092\"}. Flags and the environment go before it."`
}

// session is what every command gets beside its own flags.
type session struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	log            logFlags
	args           []string
}

// exitCode is an error that ends the process with a code and says nothing.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is an error of the caller's.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Main runs one command and returns its exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var g grammar
	exit := -1
	parser, err := newParser(&g, stdout, stderr, func(code int) { exit = code })
	if err != nil {
		fmt.Fprintln(stderr, "verbatim:", err)
		return exitFailure
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 { // --help was printed.
		return exit
	}
	if err != nil {
		return failed(stderr, commandOf(parser, args), usageError{err})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &session{stdin: stdin, stdout: stdout, stderr: stderr, log: g.Log, args: args}
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(s); err != nil {
		return failed(stderr, commandOf(parser, args), err)
	}
	return 0
}

func newParser(g *grammar, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(g,
		kong.Name("verbatim"), kong.Description(description), kong.UsageOnError(),
		kong.Configuration(loadConfig),
		kong.Writers(stdout, stderr), kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Vars{"server": defaultServerHelp, "data": "$VERBATIM_DATA, else ~/.local/state/verbatim", "statuses": strings.Join(statuses, ", ")},
	)
}

// commandOf is the command's name, or empty when there is none of that name.
func commandOf(parser *kong.Kong, args []string) string {
	for _, arg := range args {
		if slices.ContainsFunc(parser.Model.Children, func(n *kong.Node) bool { return n.Name == arg }) {
			return arg
		}
	}
	return ""
}

// failed says what went wrong and returns the exit code for it.
func failed(stderr io.Writer, command string, err error) int {
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	name := strings.TrimSpace("verbatim " + command)
	// A command's own checks come with its name before them.
	fmt.Fprintf(stderr, "%s: %s\n", name, strings.TrimPrefix(err.Error(), command+": "))
	var usage usageError
	isUsage := errors.As(err, &usage)
	if isUsage {
		fmt.Fprintf(stderr, "Run \"%s --help\" to see how it is used.\n", name)
	}
	switch {
	case command == "run":
		// Any smaller number could be the process's own.
		return exitVerbatim
	case isUsage:
		return exitUsage
	default:
		return exitFailure
	}
}
