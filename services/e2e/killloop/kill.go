package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"time"

	"verbatim.dev/services/e2e/rig"
)

// kill kills until it was often enough.
func (l *loop) kill(ctx context.Context) error {
	last, lastBroker := 0, time.Now()
	for !l.enough() {
		var err error
		switch {
		case l.mode == "supervisor":
			err = l.killSupervisor(ctx)
		case l.mode == "up":
			err = l.killUp(ctx)
		case l.mode == "sinks" && time.Since(lastBroker) > l.brokerEvery:
			err = l.restartDatabase(ctx)
			lastBroker = time.Now()
		case l.mode == "artifacts" && l.s3 != "" && time.Since(lastBroker) > l.brokerEvery:
			err = l.restartBucket(ctx)
			lastBroker = time.Now()
		case l.runs():
			err = l.killSink(ctx)
		case l.mode == "broker" && time.Since(lastBroker) > l.brokerEvery:
			err = l.broker.restart(ctx)
			lastBroker = time.Now()
			l.count("broker")
		default:
			last, err = l.killWorker(ctx, last)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *loop) enough() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.mode {
	case "broker":
		return l.killed["worker"] >= l.kills && l.killed["broker"] > 0
	case "artifacts":
		return l.killed["recorder"] >= l.kills && (l.s3 == "" || l.killed["s3"] > 0)
	case "sinks":
		return l.killed["recorder"]+l.killed["projector"] >= l.kills && l.restarts > 0
	default:
		return l.killed[l.mode] >= l.kills
	}
}

func (l *loop) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killed[what]++
}

// draw draws the time until a kill.
func (l *loop) draw() time.Duration {
	return time.Duration(float64(l.shortest) * math.Pow(float64(l.longest)/float64(l.shortest), rand.Float64()))
}

// killWorker waits for a worker that is not the last one, lets it live for a moment, and kills it.
func (l *loop) killWorker(ctx context.Context, last int) (pid int, err error) {
	err = poll(ctx, func() error {
		if pid = rig.Find(l.up.PID(), "runner-worker"); pid == 0 || pid == last {
			return errors.New("no worker is there")
		}
		return nil
	})
	if err != nil {
		return last, err
	}
	if err := pause(ctx, l.draw()); err != nil {
		return last, err
	}
	if syscall.Kill(pid, syscall.SIGKILL) == nil {
		l.count("worker")
	}
	return pid, nil
}

// killSupervisor kills the runner's supervisor, every third time together with its worker, and starts a new runner.
func (l *loop) killSupervisor(ctx context.Context) error {
	if err := l.someRun(ctx); err != nil {
		return err
	}
	if err := pause(ctx, l.draw()); err != nil {
		return err
	}
	if !l.runner.Running() {
		return fmt.Errorf("the runner ended: %w", l.runner.Err())
	}
	both := l.killed["supervisor"]%3 == 2
	if both {
		// Stopped first, so that it does not start another worker.
		_ = syscall.Kill(l.runner.PID(), syscall.SIGSTOP)
		if worker := rig.Find(l.runner.PID(), "runner-worker"); worker != 0 && syscall.Kill(worker, syscall.SIGKILL) == nil {
			l.count("worker")
		}
	}
	l.cut(both)
	l.runner.Kill()
	l.count("supervisor")
	return l.startRunner()
}

// killUp kills the whole of up and starts it again on the same data.
func (l *loop) killUp(ctx context.Context) error {
	if err := l.someRun(ctx); err != nil {
		return err
	}
	if err := pause(ctx, l.draw()); err != nil {
		return err
	}
	l.cut(false)
	l.up.Kill()
	l.count("up")
	return l.startUp(ctx)
}

// someRun waits until half of the executions that there may be at a time run.
func (l *loop) someRun(ctx context.Context) error {
	return poll(ctx, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := 0
		for _, s := range l.started {
			if _, started := readProgress(s.progress); started && !s.sealed && !s.cut {
				n++
			}
		}
		if n < (l.running+1)/2 {
			return fmt.Errorf("only %d executions run", n)
		}
		return nil
	})
}

// cut notes which executions may end now.
func (l *loop) cut(piped bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.started {
		if !s.sealed {
			s.cut, s.piped = true, s.piped || piped
		}
	}
}

// leftBehind lists the processes that still run of those that this loop caused.
func (l *loop) leftBehind() (left []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if args := readArgs(file); len(args) > 0 && mentions(args, l.dir+"/") {
			left = append(left, fmt.Sprintf("%s %.200q", filepath.Base(filepath.Dir(file)), args))
		}
	}
	return left
}
