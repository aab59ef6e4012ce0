// Package lifecycle starts services in order and stops them in drain order, which is the reverse: who
// takes work in stops first, who others write to stops last.
//
//	start  clickhouse → kafka → recorder, projector → runner → preparer → gateway
//	stop   gateway → preparer → runner → recorder, projector → kafka → clickhouse
//
// A start that fails stops what had started. A service that ends by itself is reported by Wait, so
// that the whole process ends instead of limping.
package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"time"
)

// Service is started once and stopped once. Start returns when the service does its work, or with why
// it cannot; its context bounds only the starting. Stop drains: it returns when nothing that was
// accepted is left undone, or when its context ends. Stop after a failed Start is not called.
type Service interface {
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
}

// Failing is a Service that can end by itself. The channel yields why, at most once.
type Failing interface {
	Failed() <-chan error
}

// Group is an ordered list of services. It is not safe for concurrent use, but for Wait.
type Group struct {
	logger  *slog.Logger
	members []member
	failed  chan error
	stopped chan struct{}
}

type member struct {
	name    string
	service Service
}

// NewGroup returns an empty group.
func NewGroup(logger *slog.Logger) *Group {
	return &Group{logger: logger, failed: make(chan error, 1), stopped: make(chan struct{})}
}

// Start starts the service and adds it. When it fails, everything that was started before is stopped
// with the given grace and the error is returned.
func (g *Group) Start(ctx context.Context, name string, s Service, grace time.Duration) error {
	begun := time.Now()
	if err := s.Start(ctx); err != nil {
		err = fmt.Errorf("start %s: %w", name, err)
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		return errors.Join(err, g.Stop(stopping))
	}
	g.logger.InfoContext(ctx, "service started", "service", name, "took", time.Since(begun).Round(time.Millisecond))
	g.members = append(g.members, member{name, s})
	if f, ok := s.(Failing); ok {
		go g.watch(name, f)
	}
	return nil
}

func (g *Group) watch(name string, f Failing) {
	select {
	case err := <-f.Failed():
		select {
		case g.failed <- fmt.Errorf("%s ended: %w", name, err):
		default: // Another one failed first; one reason to end is enough.
		}
	case <-g.stopped:
	}
}

// Wait returns nil when the context ends and an error when a service ended by itself.
func (g *Group) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.failed:
		return err
	}
}

// Stop stops every started service in reverse order and joins their errors. A service that fails to
// stop, or does not return, does not keep the others from stopping.
func (g *Group) Stop(ctx context.Context) error {
	select {
	case <-g.stopped:
		return nil
	default:
		close(g.stopped)
	}
	var errs []error
	for i := len(g.members) - 1; i >= 0; i-- {
		m := g.members[i]
		begun := time.Now()
		if err := g.stop(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", m.name, err))
			continue
		}
		g.logger.InfoContext(ctx, "service stopped", "service", m.name, "took", time.Since(begun).Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

// overrun is how much longer than its context a service may take to stop. Then it is left alone and ends with the process; what it
// had not finished is found again by the next one, as after a kill.
const overrun = 15 * time.Second

// stop stops one service, or says what the process does instead.
func (g *Group) stop(ctx context.Context, m member) error {
	stopped := make(chan error, 1)
	go func() { stopped <- m.service.Stop(ctx) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(overrun)
	defer late.Stop()
	select {
	case err := <-stopped:
		return err
	case <-late.C:
	}
	var stacks bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1) // A buffer takes everything.
	g.logger.ErrorContext(ctx, "service does not stop, it is left as it is", "service", m.name, "goroutines", stacks.String())
	return errNotStopped
}

var errNotStopped = errors.New("it does not return; the log says what it waits for")
