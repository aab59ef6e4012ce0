// Command killloop proves by killing that the runner loses nothing. Executions write known pseudo-random bytes to both
// streams and end with known exit codes, while processes of Verbatim are killed with SIGKILL at random moments:
//
//	worker      the runner's worker
//	broker      the worker, and from time to time the broker, which is then started again
//	supervisor  the runner's supervisor, with the worker left alone; a new runner is started
//	up          the whole "verbatim up", with the broker and ClickHouse in it; it is started again on the same data
//	artifacts   the recorder, which writes artifacts; the S3-compatible server that it writes to is killed from time to time
//	sinks       recorder and projector, each by itself; ClickHouse is stopped and started from time to time
//
// In the first two modes and in the last two nothing of it may be seen in the rows: each is complete, with the known digests and the known
// exit code, and each execution was started once. In supervisor and up the processes end with their runner; then every byte
// that a process had written is there, and the row says either how it ended or that this could not be had.
//
// A process counts in a file what write(2) took of each stream. So what must be there is known also for a process
// that did not come to its end. It makes that file exclusively: a second start of the same execution is seen.
//
// Everything is looked at from outside, by the HTTP API and "verbatim logs". scripts/kill-loop runs it on
// the embedded broker, as a process of its own, or on Apache Kafka.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"verbatim.dev/services/e2e/rig"
)

func main() {
	if code, played := play(os.Args); played {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "killloop:", err)
		os.Exit(1)
	}
}

// play makes this binary one of the processes that the loop needs.
func play(args []string) (code int, played bool) {
	if len(args) > 1 && args[1] == "noise" {
		return makeNoise(args[2:]), true
	}
	return rig.Play(args)
}

// plan says what a loop does.
type plan struct {
	mode string
	// executions and kills are how many there are at least: the loop goes on until it has both.
	executions, kills int
	// running is how many executions there are at a time.
	running int
	// bytes is what each writes to each stream, lasting is about how long it takes.
	bytes   int
	lasting time.Duration
	// shortest and longest bound the time between two kills, which is drawn so that every order of magnitude comes as often.
	shortest, longest time.Duration
	// brokerEvery is how often the broker is killed in mode broker, ClickHouse restarted in mode sinks, and the S3 server killed in
	// mode artifacts.
	brokerEvery time.Duration
	// verbatim is the program; empty: this one.
	verbatim string
	// s3 is the program versitygw, which takes the artifacts in mode artifacts; empty: a folder does.
	s3 string
	// broker is the address of a broker that is there, brokerRestart the command that kills it and starts it again. Empty: an
	// embedded one.
	broker, brokerRestart string
	dir                   string
}

func (p plan) validate() error {
	switch {
	case !slices.Contains([]string{"worker", "broker", "supervisor", "up", "artifacts", "sinks"}, p.mode):
		return fmt.Errorf("mode is %q, it must be worker, broker, supervisor, up, artifacts or sinks", p.mode)
	case p.executions < 1 || p.kills < 1 || p.running < 1 || p.bytes < 1:
		return errors.New("executions, kills, running and bytes must be positive")
	case p.shortest <= 0 || p.longest < p.shortest:
		return errors.New("the times between kills must be positive, and the longest not below the shortest")
	case p.broker != "" && p.mode == "up":
		return errors.New("in mode up the broker is the embedded one")
	case p.broker != "" && p.mode == "broker" && p.brokerRestart == "":
		return errors.New("mode broker needs a command that restarts the broker")
	}
	return nil
}

func start(ctx context.Context, out io.Writer) (err error) {
	var p plan
	flag.StringVar(&p.mode, "mode", "worker", "what is killed: worker, broker, supervisor, up, artifacts or sinks")
	flag.IntVar(&p.executions, "executions", 200, "executions, at least")
	flag.IntVar(&p.kills, "kills", 200, "kills, at least")
	flag.IntVar(&p.running, "running", 24, "executions at a time")
	flag.IntVar(&p.bytes, "bytes", 300_000, "bytes that each writes to each stream")
	flag.DurationVar(&p.lasting, "lasting", 6*time.Second, "about how long each takes")
	flag.DurationVar(&p.shortest, "shortest", 20*time.Millisecond, "least time from the start of a worker to its kill")
	flag.DurationVar(&p.longest, "longest", 6*time.Second, "greatest time")
	flag.DurationVar(&p.brokerEvery, "broker-every", 15*time.Second, "how often the broker is killed, in mode broker, ClickHouse restarted, in mode sinks, or the S3 server killed, in mode artifacts")
	flag.StringVar(&p.verbatim, "verbatim", "", "the program to test; default: the one built into this command")
	flag.StringVar(&p.s3, "s3", "", "the program versitygw, for mode artifacts; default: artifacts go to a folder")
	flag.StringVar(&p.broker, "broker", "", "address of a broker to use instead of an embedded one")
	flag.StringVar(&p.brokerRestart, "broker-restart", "", "command that kills that broker and starts it again")
	flag.StringVar(&p.dir, "dir", "", "folder for data and logs, kept; default: a temporary one, removed when all is well")
	flag.Parse()
	if p.dir == "" {
		if p.dir, err = os.MkdirTemp("", "verbatim-kill"); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
		defer func() {
			if err == nil {
				err = os.RemoveAll(p.dir)
			}
		}()
	}
	return p.run(ctx, out)
}
