package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"verbatim.dev/services/internal/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type part struct {
	stuck  chan struct{} // Stop waits for it to be closed, if it is not nil.
	name   string
	log    *[]string
	start  error
	stop   error
	failed chan error
}

func (p *part) Start(context.Context) error {
	*p.log = append(*p.log, "start "+p.name)
	return p.start
}

func (p *part) Stop(context.Context) error {
	if p.stuck != nil {
		<-p.stuck
	}
	*p.log = append(*p.log, "stop "+p.name)
	return p.stop
}

func (p *part) Failed() <-chan error { return p.failed }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestStopsInReverseOrderAndReportsEveryError(t *testing.T) {
	t.Parallel()
	var log []string
	g := lifecycle.NewGroup(quiet())
	for _, p := range []*part{{name: "a", log: &log}, {name: "b", log: &log, stop: errors.New("stuck")}, {name: "c", log: &log}} {
		if err := g.Start(t.Context(), p.name, p, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "stop b: stuck") {
		t.Errorf("stop said %v", err)
	}
	if want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}; !slices.Equal(log, want) {
		t.Errorf("order %v, want %v", log, want)
	}
	if err := g.Stop(t.Context()); err != nil || len(log) != 6 {
		t.Errorf("a second stop did something: %v, %v", err, log)
	}
}

func TestFailedStartUnwinds(t *testing.T) {
	t.Parallel()
	var log []string
	g := lifecycle.NewGroup(quiet())
	if err := g.Start(t.Context(), "a", &part{name: "a", log: &log}, time.Second); err != nil {
		t.Fatal(err)
	}
	err := g.Start(t.Context(), "b", &part{name: "b", log: &log, start: errors.New("no port")}, time.Second)
	if err == nil || !strings.Contains(err.Error(), "start b: no port") {
		t.Errorf("start said %v", err)
	}
	if want := []string{"start a", "start b", "stop a"}; !slices.Equal(log, want) {
		t.Errorf("order %v, want %v", log, want)
	}
}

func TestWaitReportsWhoEnded(t *testing.T) {
	t.Parallel()
	var log []string
	g := lifecycle.NewGroup(quiet())
	p := &part{name: "a", log: &log, failed: make(chan error, 1)}
	if err := g.Start(t.Context(), "a", p, time.Second); err != nil {
		t.Fatal(err)
	}
	p.failed <- errors.New("broken")
	if err := g.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "a ended: broken") {
		t.Errorf("wait said %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Wait(ended); err != nil {
		t.Errorf("wait said %v after the context ended", err)
	}
	if err := g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// A service that never returns is named, with what it waits for, and the others are stopped all the same.
func TestAServiceThatDoesNotStopIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		var log []string
		g := lifecycle.NewGroup(slog.New(slog.NewTextHandler(&said, nil)))
		stuck := &part{name: "b", log: &log, stuck: make(chan struct{})}
		for _, p := range []*part{{name: "a", log: &log}, stuck, {name: "c", log: &log}} {
			if err := g.Start(t.Context(), p.name, p, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.Stop(ctx); err == nil || !strings.Contains(err.Error(), "stop b: it does not return") {
			t.Errorf("stop said %v", err)
		}
		if took := time.Since(begun); took < time.Minute || took > 2*time.Minute {
			t.Errorf("it took %s", took)
		}
		if want := []string{"start a", "start b", "start c", "stop c", "stop a"}; !slices.Equal(log, want) {
			t.Errorf("order %v, want %v", log, want)
		}
		if text := said.String(); !strings.Contains(text, "service=b") || !strings.Contains(text, "lifecycle_test.(*part).Stop") {
			t.Errorf("the log does not say who waits where:\n%s", text)
		}
		close(stuck.stuck)
	})
}
