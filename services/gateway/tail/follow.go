package tail

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// clockSkew is how far a broker's clock may be behind the clock that made an execution's id.
const clockSkew = 10 * time.Second

// Request says what to follow.
type Request struct {
	// ID is the execution's id.
	ID string
	// After is the offset of the last fact that is known already, -1 for none.
	After int64
	// Sealed says that the latest attempt's output was seen to be sealed before the call, and that no other attempt follows, so that the
	// tail ends when it has caught up, even if the seal itself lies at or below After.
	Sealed bool
	// Known is what the facts up to After, but the output, say; nil when After is -1. The tail owns it.
	Known *execution.State
}

// Follow yields the facts of an execution, by rising offset, each (source, id) once, and ends when nothing more is
// expected. An error comes last: the context's cause, ErrStopped, ErrOffsetGone, or the archive's.
func (h *Hub) Follow(ctx context.Context, r Request) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(h.ctx, func() { cancel(ErrStopped) })()

		f := &follower{hub: h, Request: r, partition: h.c.Partition(r.ID), last: r.After, state: r.Known, yield: yield}
		if f.state == nil {
			f.state = execution.New(r.ID)
		}
		f.over = f.state.Standing().Over()
		err := f.run(ctx)
		if err == nil || errors.Is(err, errEnough) {
			return
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		yield(Fact{}, err)
	}
}

// errEnough says that the caller stopped the iteration.
var errEnough = errors.New("enough")

type follower struct {
	Request
	hub       *Hub
	partition int
	last      int64
	// seen are the facts that were handed out: a producer's resend stands in the log a second time.
	seen  execution.Seen
	yield func(Fact, error) bool
	// state is what the facts say, but for the output; over, that nothing more is expected.
	state *execution.State
	over  bool
}

func (f *follower) run(ctx context.Context) error {
	next, err := f.fromArchive(ctx)
	if err != nil || f.over {
		return err
	}
	s, err := f.hub.subscribe(ctx, f.partition, f.ID)
	if err != nil {
		return err
	}
	defer s.leave()
	for {
		live := s.begin()
		if err := f.catchUp(ctx, next, live); err != nil {
			return err
		}
		if f.over || f.Sealed {
			return nil
		}
		err := f.fromHub(ctx, s)
		if !errors.Is(err, errOverflow) {
			return err
		}
		next = max(next, live, f.last+1)
	}
}

// fromArchive hands out what is in the archive below the seam and returns the offset to go on from in
// the log. When nobody knows the seam, the log is read after the last archived fact.
func (f *follower) fromArchive(ctx context.Context) (next int64, err error) {
	stored, known, err := f.hub.c.Archive.Stored(ctx, f.partition)
	if err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		f.hub.c.Logger.WarnContext(ctx, "nobody says how far the archive reaches", "partition", f.partition, "error", err)
		known = false
	}
	for {
		before := f.last
		err := f.archived(ctx, stored, known)
		if err == nil {
			break
		}
		// A caller that takes its time can outlast the database's patience.
		if errors.Is(err, errEnough) || ctx.Err() != nil || f.last == before {
			return 0, err
		}
	}
	switch {
	case known:
		return max(stored, f.last+1), nil
	case f.last >= 0:
		return f.last + 1, nil
	}
	return f.beginning(ctx)
}

func (f *follower) archived(ctx context.Context, stored int64, known bool) error {
	for fact, err := range f.hub.c.Archive.Facts(ctx, f.ID, f.last) {
		switch {
		case err != nil:
			return fmt.Errorf("read archive: %w", err)
		case fact.Partition != f.partition:
			continue
		case known && fact.Offset >= stored:
			return nil // From here on the archive may have holes.
		}
		if err := f.handOut(fact); err != nil {
			return err
		}
	}
	return nil
}

// beginning is an offset that lies before the execution's first fact.
func (f *follower) beginning(ctx context.Context) (int64, error) {
	made, err := events.ParseExecutionID(f.ID)
	if err != nil {
		return 0, err
	}
	if now := time.Now(); made.After(now) {
		made = now
	}
	wait := pauses()
	for {
		offset, err := f.hub.c.Log.OffsetAt(ctx, f.partition, made.Add(-clockSkew))
		if err == nil {
			return offset, nil
		}
		if !f.hub.pause(ctx, wait, "find the execution's first fact", f.partition, err) {
			return 0, context.Cause(ctx)
		}
	}
}

// catchUp hands out what lies in [next, live) of the log, part by part: between two parts the caller may
// take its time without holding a reader.
func (f *follower) catchUp(ctx context.Context, next, live int64) error {
	for next < live {
		facts, upTo, err := f.gather(ctx, next, live)
		if err != nil {
			return err
		}
		for _, fact := range facts {
			if err := f.handOut(fact); err != nil {
				return err
			}
		}
		next = upTo
	}
	return nil
}

// gather reads facts from [next, live) up to a bounded size, and returns the offset to go on from.
func (f *follower) gather(ctx context.Context, next, live int64) (facts []Fact, upTo int64, err error) {
	if err := f.hub.catchingUp.Acquire(ctx, 1); err != nil {
		return nil, 0, context.Cause(ctx)
	}
	defer f.hub.catchingUp.Release(1)
	bytes := 0
	err = f.hub.read(ctx, f.partition, func() int64 { return next }, func(r Record) bool {
		next = r.Offset + 1
		if r.Offset < live && subjectOf(r) == f.ID {
			if fact, ok := factOf(f.partition, r); ok {
				facts, bytes = append(facts, fact), bytes+len(r.Value)
			}
		}
		return next < live && bytes < gatherBytes
	})
	return facts, next, err
}

// fromHub hands out live facts until the end, an overflow or an error.
func (f *follower) fromHub(ctx context.Context, s *subscription) error {
	for {
		facts, err := s.take(ctx)
		if err != nil {
			return err
		}
		for _, fact := range facts {
			if err := f.handOut(fact); err != nil {
				return err
			}
			if f.over {
				return nil
			}
		}
	}
}

func (f *follower) handOut(fact Fact) error {
	if fact.Offset <= f.last {
		return nil
	}
	f.last = fact.Offset
	e := fact.Event
	if added, sure := f.seen.Add(e); sure && !added {
		return nil
	}
	if e.Type == events.TypeOutputChunk {
		f.state.Heard(e.Attempt, e.Sequence)
		f.over = f.over && f.state.Standing().Over() // It may be from a runner that was lost.
	} else {
		f.state.Apply(e, fact.ReceivedAt)
		f.over = f.state.Standing().Over()
	}
	if !f.yield(fact, nil) {
		return errEnough
	}
	return nil
}
