package runner_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/journal"
)

var errAnswerLost = errors.New("connection reset by peer")

// group is what the broker knows of the one claim of a test.
type group struct {
	whose atomic.Value
	asked atomic.Int32
	// lose: the answer of a claim is lost; grant: the broker has it.
	lose, grant atomic.Bool
}

func (g *group) claim(context.Context, *message.Message) error {
	if g.grant.Load() {
		g.whose.Store(runner.Mine)
	}
	if g.lose.Load() {
		return errAnswerLost
	}
	return nil
}

func (g *group) configure(c *runner.Config) {
	c.Committed = func(context.Context, journal.Launch) (runner.Whose, error) {
		if g.asked.Add(1) == 1 {
			return runner.Nobodys, errors.New("no broker") // The first question is lost, too.
		}
		whose, _ := g.whose.Load().(runner.Whose)
		return whose, nil
	}
}

// The broker has a claim and its answer is lost. It brings the message to nobody again, so the runner has to find out.
func TestClaimWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	g := &group{}
	g.lose.Store(true)
	g.grant.Store(true)
	f := newRunnerWith(t, g.claim, g.configure)
	m, id := prepared(t, shell("echo once"))
	if err := f.Handle(m); !errors.Is(err, errAnswerLost) {
		t.Fatalf("Handle says %v", err)
	}
	f.log.awaitType(t, id, events.TypeOutputSealed)
	if s := f.log.tell(t, id); string(s.output[stdout]) != "once\n" {
		t.Error(describe(s.facts))
	}
}

// The claim did not get through, and the message comes again.
func TestClaimThatDidNotGetThrough(t *testing.T) {
	t.Parallel()
	g := &group{}
	g.lose.Store(true)
	f := newRunnerWith(t, g.claim, g.configure)
	m, id := prepared(t, shell("echo once"))
	for range 3 {
		if err := f.Handle(m); !errors.Is(err, errAnswerLost) {
			t.Fatalf("Handle says %v", err)
		}
	}
	g.lose.Store(false)
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	f.log.awaitType(t, id, events.TypeOutputSealed)
	s := f.log.tell(t, id)
	one[*executionv1.ProcessStarted](t, s)
	if string(s.output[stdout]) != "once\n" {
		t.Error(describe(s.facts))
	}
}

// Another runner has claimed it, or nobody for long: it is not this runner's, and its slot is free again.
func TestClaimThatIsNotThere(t *testing.T) {
	t.Parallel()
	for name, whose := range map[string]runner.Whose{"another's": runner.Anothers, "nobody's": runner.Nobodys} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claimThatIsNotThere(t, whose)
		})
	}
}

func claimThatIsNotThere(t *testing.T, whose runner.Whose) {
	g := &group{}
	g.whose.Store(whose)
	g.lose.Store(true)
	f := newRunnerWith(t, g.claim, func(c *runner.Config) {
		g.configure(c)
		c.Slots = 1
	})
	m, id := prepared(t, shell("echo once"))
	if err := f.Handle(m); !errors.Is(err, errAnswerLost) {
		t.Fatalf("Handle says %v", err)
	}
	eventually(t, "it is forgotten", func() bool {
		_, err := os.Stat(filepath.Join(f.data, "attempts", id+"-1"))
		return errors.Is(err, os.ErrNotExist)
	})
	g.lose.Store(false)
	f.log.awaitType(t, f.start(t, shell("echo next")), events.TypeOutputSealed)
	if facts := f.log.of(id); len(facts) > 0 {
		t.Errorf("facts of an attempt that is nobody's:\n%s", describe(facts))
	}
}

// The runner stops before it knows: the next one asks.
func TestClaimWithoutAnAnswerAtTheEnd(t *testing.T) {
	t.Parallel()
	g := &group{}
	g.lose.Store(true)
	f := newRunnerWith(t, g.claim, g.configure)
	m, id := prepared(t, shell("echo once"))
	if err := f.Handle(m); !errors.Is(err, errAnswerLost) {
		t.Fatalf("Handle says %v", err)
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.whose.Store(runner.Mine)
	next := newRunnerWith(t, g.claim, func(c *runner.Config) {
		g.configure(c)
		c.DataDir = f.data
	})
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.log.awaitType(t, id, events.TypeOutputSealed)
	if s := next.log.tell(t, id); string(s.output[stdout]) != "once\n" {
		t.Error(describe(s.facts))
	}
}
