// Command runnerbench measures what it costs to have a process run by Verbatim instead of by oneself. The runner is the real one:
// supervisor and worker, processes of their own, with a data folder on a disk, publishing to an embedded broker in another
// process. Beside it, in the same run and round by round in turn, the same work is done by a bare Go os/exec loop and
// by `command > file`. scripts/bench-runner runs it.
//
// What is measured begins when the work is in the topic. It ends when the facts can be read from the log by a consumer; for the
// large output, when the log has acknowledged all of them: a consumer that reads it on the same cores would be measured, too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/e2e/rig"
	"verbatim.dev/services/internal/wiring"
)

func main() {
	if code, played := play(os.Args); played {
		os.Exit(code)
	}
	var b bench
	flag.IntVar(&b.rounds, "rounds", 5, "rounds; the median counts")
	flag.IntVar(&b.commands, "commands", 400, "short commands in a round")
	flag.IntVar(&b.parallel, "parallel", 16, "short commands at a time")
	flag.IntVar(&b.megabytes, "megabytes", 512, "MiB of the large output")
	flag.IntVar(&b.idle, "idle", 200, "idle processes")
	flag.DurationVar(&b.ticking, "ticking", 20*time.Second, "how long lines are written for the time to the log")
	flag.StringVar(&b.only, "only", "short,idle,large,delay", "what to measure")
	flag.StringVar(&b.compression, "compression", "zstd", "what the runner compresses with: zstd, lz4, snappy, gzip or none")
	flag.StringVar(&b.rig.Program, "verbatim", "", "the program to measure; default: the one built into this command")
	flag.StringVar(&b.rig.Dir, "dir", "", "folder on the disk to measure; default: a temporary one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "runnerbench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	rounds, commands, parallel, megabytes, idle int
	ticking                                     time.Duration
	only, compression                           string
	rig                                         rig.Rig

	runner    *rig.Process
	broker    kafka.Config
	publisher *kafka.Publisher
	facts     *watcher
}

func (b *bench) run(ctx context.Context, out io.Writer) (err error) {
	if b.rig.Dir == "" {
		if b.rig.Dir, err = os.MkdirTemp("", "verbatim-bench"); err != nil {
			return err
		}
		defer os.RemoveAll(b.rig.Dir)
	}
	broker, err := rig.StartBroker(filepath.Join(b.rig.Dir, "broker"))
	if err != nil {
		return err
	}
	defer broker.Kill()
	c := kafka.Config{Brokers: []string{broker.Addr}, Logger: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(ctx, c, wiring.Topics()); err != nil {
		return err
	}
	// What it would wait for more is not the runner's time.
	if b.publisher, err = kafka.NewPublisher(c, kafka.PublisherOptions{Linger: -1}); err != nil {
		return err
	}
	defer func() { _ = b.publisher.Close() }() // Everything it wrote was acknowledged.
	b.broker = c
	if b.facts, err = watch(ctx, c, nil); err != nil {
		return err
	}
	defer func() { b.facts.close() }()
	b.runner, err = b.rig.Launch("runner", "runner", "--kafka", broker.Addr, "--data", b.rig.Dir, "--slots", fmt.Sprint(max(b.parallel, b.idle)), "--kafka-compression", b.compression)
	if err != nil {
		return err
	}
	err = b.measure(ctx, out)
	return errors.Join(err, b.runner.Stop(time.Minute))
}

func (b *bench) measure(ctx context.Context, out io.Writer) error {
	if _, err := b.execute(ctx, []string{"/bin/true"}, 1, 1); err != nil { // It is ready when this is over.
		return err
	}
	fmt.Fprintf(out, "%-46s %12s %12s %7s  %s\n", "", "verbatim", "bare", "ratio", "target")
	// Idle processes come before the large output, which leaves the runner memory that it gives back later.
	for _, m := range []struct {
		name    string
		measure func(context.Context, io.Writer) error
	}{{"short", b.shortCommands}, {"idle", b.idleProcesses}, {"large", b.largeOutput}, {"delay", b.timeToLog}} {
		if !slices.Contains(strings.Split(b.only, ","), m.name) {
			continue
		}
		if err := m.measure(ctx, out); err != nil {
			return err
		}
	}
	return nil
}

// submit puts work into the topic. The limit of its output is nil for the default.
func (b *bench) submit(ctx context.Context, argv []string, limit *executionv1.OutputLimit, n int) (ids []string, err error) {
	var batch []*message.Message
	for range n {
		id, err := events.NewExecutionID()
		if err != nil {
			return nil, err
		}
		spec := &executionv1.Prepared{Argv: argv, OutputLimit: limit}
		e, err := events.Producer{Name: "preparer", Source: "/verbatim/preparer"}.Event(id, 1, 1, time.Now(), spec)
		if err != nil {
			return nil, err
		}
		m, err := codec.ToMessage(e)
		if err != nil {
			return nil, err
		}
		ids, batch = append(ids, id), append(batch, m)
	}
	return ids, b.publisher.PublishContext(ctx, events.TopicWork, batch...)
}

// execute runs a command n times, and returns how long it took from the submission to the last seal.
func (b *bench) execute(ctx context.Context, argv []string, n, parallel int) (time.Duration, error) {
	began := time.Now()
	work := make(chan int)
	failed := make(chan error, parallel)
	for range parallel {
		go func() {
			var err error
			for k := range work {
				if err != nil {
					continue
				}
				var ids []string
				if ids, err = b.submit(ctx, argv, nil, k); err == nil {
					err = b.facts.sealed(ctx, ids)
				}
			}
			failed <- err
		}()
	}
	for range n {
		work <- 1
	}
	close(work)
	var errs []error
	for range parallel {
		errs = append(errs, <-failed)
	}
	return time.Since(began), errors.Join(errs...)
}

// acknowledged runs a command, and returns how long it took from the submission until all of its facts are in the log: then
// the runner puts it on its list of ended attempts. Nobody consumes meanwhile.
func (b *bench) acknowledged(ctx context.Context, argv []string, limit *executionv1.OutputLimit) (time.Duration, error) {
	b.facts.close() // Closing it twice does nothing.
	host, err := os.Hostname()
	if err != nil {
		return 0, err
	}
	list := filepath.Join(b.rig.Dir, "runner-"+host, "ended")
	began := time.Now()
	ids, err := b.submit(ctx, argv, limit, 1)
	if err != nil {
		return 0, err
	}
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		text, err := os.ReadFile(list)
		if err != nil {
			return 0, err
		}
		if strings.Contains(string(text), ids[0]) {
			break
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	took := time.Since(began)
	admin, err := kafka.NewAdmin(b.broker)
	if err != nil {
		return 0, err
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, events.TopicExecutions)
	if err != nil {
		return 0, err
	}
	b.facts, err = watch(ctx, b.broker, ends)
	return took, err
}

func median[T float64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// usage is what the runner's two processes have used.
type usage struct {
	cpu time.Duration
	// private is the memory that nobody else has, in bytes.
	private int
}

func (b *bench) usage() (u usage, err error) {
	super := b.runner.PID()
	worker := rig.Find(super, "runner-worker")
	if worker == 0 {
		return u, errors.New("the runner has no worker")
	}
	for _, pid := range []int{super, worker} {
		cpu, err := cpuOf(pid)
		if err != nil {
			return u, err
		}
		private, err := privateOf(pid)
		if err != nil {
			return u, err
		}
		u.cpu += cpu
		u.private += private
	}
	return u, nil
}
