package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"verbatim.dev/events"
	"verbatim.dev/services/client"
	"verbatim.dev/services/e2e/rig"
	"verbatim.dev/services/gateway/api"
)

// loop is one run of a plan.
type loop struct {
	plan
	out    io.Writer
	broker *broker
	up     *rig.Process
	runner *rig.Process // In the modes supervisor, artifacts and sinks, where the runner is no part of up.
	sinks  map[string]*rig.Process
	// memory is what each sink has taken at most, in bytes, over all its lives.
	memory map[string]uint64
	// database is where ClickHouse is, in mode sinks; restarts is how often it was stopped and started.
	database string
	restarts int
	bucket   *bucket // In mode artifacts.

	upArgs []string

	mu      sync.Mutex
	api     *client.Client
	server  string
	next    uint64
	started []*started
	killed  map[string]int
}

// started is an execution that was asked for.
type started struct {
	seed     uint64
	id       string
	progress string
	sealed   bool
	// cut says that it ran when the runner was taken from it; piped, that nobody was left who could read its pipes.
	cut, piped bool
}

func (p plan) run(ctx context.Context, out io.Writer) error {
	if err := p.validate(); err != nil {
		return err
	}
	l := &loop{plan: p, out: out, killed: make(map[string]int)}
	if err := os.MkdirAll(filepath.Join(p.dir, "progress"), 0o700); err != nil {
		return err
	}
	began := time.Now()
	err := l.open(ctx)
	if err == nil {
		err = l.turn(ctx)
	}
	killing := time.Since(began)
	var found findings
	if err == nil {
		found, err = l.check(ctx)
	}
	if err == nil && l.mode == "sinks" {
		found.broken = append(found.broken, l.replay(ctx)...)
	}
	if err == nil && l.bucket != nil {
		found.broken = append(found.broken, l.leftInBucket(ctx)...)
	}
	err = errors.Join(err, l.close(err != nil))
	if left := l.leftBehind(); len(left) > 0 && err == nil {
		found.broken = append(found.broken, "processes are left behind: "+strings.Join(left, ", "))
	}
	if err == nil {
		err = found.problem()
	}
	l.report(killing, time.Since(began), found)
	if err != nil {
		fmt.Fprintln(out, "logs and data are in", p.dir)
		return err
	}
	fmt.Fprintln(out, "PASS")
	return nil
}

// open starts what the mode needs.
func (l *loop) open(ctx context.Context) (err error) {
	var args []string
	if l.mode != "up" {
		if l.broker, err = l.startBroker(); err != nil {
			return err
		}
		// A prefix of its own, so that a broker can be used for many loops.
		args = []string{"--kafka-broker", l.broker.addr, "--topic-prefix", l.prefix()}
	}
	switch l.mode {
	case "supervisor":
		args = append(args, "--services", "preparer,recorder,projector")
	case "sinks":
		if l.database, err = freeAddress(ctx); err != nil {
			return err
		}
		args = append(args, "--services", "preparer", "--clickhouse", l.database)
	case "artifacts":
		if l.database, err = freeAddress(ctx); err != nil {
			return err
		}
		if l.bucket, err = l.startBucket(ctx); err != nil {
			return err
		}
		args = append(args, "--services", "preparer,projector", "--clickhouse", l.database, "--artifacts", l.bucket.url)
	}
	l.upArgs = args
	if err = l.startUp(ctx, args...); err != nil {
		return err
	}
	if l.mode == "sinks" || l.mode == "artifacts" {
		if err := l.startSinks(); err != nil {
			return err
		}
	}
	if l.runs() {
		return l.startRunner()
	}
	return nil
}

// runs says whether the runner is no part of up.
func (l *loop) runs() bool {
	return l.mode == "supervisor" || l.mode == "sinks" || l.mode == "artifacts"
}

func (l *loop) startUp(ctx context.Context, args ...string) error {
	s, server, err := l.plan.up(ctx, args...)
	if err != nil {
		return err
	}
	c, err := client.New(server, client.Options{Wait: time.Minute})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.api, l.server = s, c, server
	return err
}

func (l *loop) prefix() string { return "kill-" + filepath.Base(l.dir) + "." }

func (l *loop) startRunner() (err error) {
	l.runner, err = l.rig().Launch("runner", "runner", "--kafka", l.broker.addr, "--topic-prefix", l.prefix(), "--data", filepath.Join(l.dir, "data"), "--grace", "2s")
	return err
}

// close stops what was started, cleanly if nothing is wrong so far.
func (l *loop) close(broken bool) error {
	var errs []error
	for _, s := range []*rig.Process{l.runner, l.sinks["recorder"], l.sinks["projector"], l.up} {
		switch {
		case s == nil:
		case broken:
			_ = s.Stop(patience) // Killed, it would leave its processes to a runner that goes on.
		default:
			errs = append(errs, s.Stop(patience))
		}
	}
	if l.broker != nil {
		l.broker.stop()
	}
	if l.bucket != nil {
		l.bucket.kill()
		errs = append(errs, l.bucket.store.Close())
	}
	return errors.Join(errs...)
}

// turn keeps executions running and kills, until there were enough of both.
func (l *loop) turn(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	enough := make(chan struct{})
	work.Go(func() error {
		defer close(enough)
		return l.kill(ctx)
	})
	for range l.running {
		work.Go(func() error {
			for {
				s, more := l.begin(enough)
				if !more {
					return nil
				}
				if err := l.execute(ctx, s); err != nil {
					return err
				}
			}
		})
	}
	return work.Wait()
}

// begin gives out the next execution, while there have to be more.
func (l *loop) begin(enough <-chan struct{}) (*started, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-enough:
		if int(l.next) >= l.executions {
			return nil, false
		}
	default:
	}
	l.next++
	s := &started{seed: l.next, progress: filepath.Join(l.dir, "progress", strconv.FormatUint(l.next, 10))}
	return s, true
}

func (l *loop) client() *client.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.api
}

// execute asks for an execution and waits until its output is sealed.
func (l *loop) execute(ctx context.Context, s *started) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if s.id, err = events.NewExecutionID(); err != nil {
		return err
	}
	argv := []string{self, "noise", strconv.FormatUint(s.seed, 10), strconv.Itoa(l.bytes), l.lasting.String(), s.progress}
	err = poll(ctx, func() error { // The gateway may be gone for a moment, in mode up.
		_, err := l.client().SubmitAs(ctx, s.id, api.SubmitRequest{Command: &api.Command{Argv: argv}, Stdin: noise(s.seed, 0, stdinBytes)})
		return err
	})
	if err != nil {
		return fmt.Errorf("submit execution %d: %w", s.seed, err)
	}
	l.mu.Lock()
	l.started = append(l.started, s)
	l.mu.Unlock()
	err = pollEvery(ctx, 300*time.Millisecond, func() error {
		row, err := l.client().Get(ctx, s.id)
		if err == nil && !row.Sealed {
			err = fmt.Errorf("execution %d (%s) is not sealed: %s", s.seed, s.id, row.Status)
		}
		return err
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	s.sealed = err == nil
	return err
}
