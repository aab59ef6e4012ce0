package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
)

// Fact is a fact and where it was.
type Fact struct {
	Event events.Event
	// ReceivedAt is the record's time at the broker; zero when it is not known.
	ReceivedAt time.Time
}

// Filter narrows what is replayed. The zero Filter is everything.
type Filter struct {
	// Execution is the only one, when not empty.
	Execution string `json:"execution,omitempty"`
	// Since and Until bound the time at the broker: [Since, Until).
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// UntilSequence leaves out facts with a greater sequence, when not 0.
	UntilSequence uint64 `json:"until_sequence,omitempty"`
}

// Validate reports everything that is wrong.
func (f Filter) Validate() error {
	var errs []error
	if f.Execution != "" {
		if _, err := events.ParseExecutionID(f.Execution); err != nil {
			errs = append(errs, err)
		}
	}
	if f.UntilSequence > 0 && f.Execution == "" {
		errs = append(errs, errors.New("a sequence as the end goes with one execution"))
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		errs = append(errs, errors.New("the end is not after the beginning"))
	}
	return errors.Join(errs...)
}

// partial says whether the filter leaves anything out.
func (f Filter) partial() bool { return f != Filter{} }

// Takes says whether a fact is within the filter.
func (f Filter) Takes(x Fact) bool {
	switch {
	case f.Execution != "" && x.Event.Subject != f.Execution:
	case f.UntilSequence > 0 && x.Event.Sequence > f.UntilSequence:
	case !f.Since.IsZero() && x.ReceivedAt.Before(f.Since):
	case !f.Until.IsZero() && !x.ReceivedAt.Before(f.Until):
	default:
		return true
	}
	return false
}

// Source is where facts come from. It is read once, by one goroutine.
type Source interface {
	// Name says what it is, for people and to know it again when a replay goes on.
	Name() string
	// Total is how many units lie between the position and the end, and what a unit is. nil is the beginning.
	Total(ctx context.Context, position json.RawMessage) (n uint64, unit string, err error)
	// Facts yields the facts after a position. It may yield more than the filter takes. After an error nothing more comes.
	Facts(ctx context.Context, position json.RawMessage) iter.Seq2[Fact, error]
	// Grouped says that the facts of an execution come right after each other, and all of them: an execution is behind the source when
	// the next one begins. After a resumption the one it stopped in comes whole.
	Grouped() bool
	// Position is from where on everything comes again that was not yielded yet, and how many units are behind it.
	Position() (position json.RawMessage, done uint64)
}

// archive reads the table events.
type archive struct {
	store  *clickhouse.Store
	filter Filter
	// done is the last execution that was yielded whole, current the one being yielded.
	done, current string
	facts         uint64
}

// Archive is the source that does not forget.
func Archive(s *clickhouse.Store, f Filter) Source { return &archive{store: s, filter: f} }

func (a *archive) Name() string { return "archive" }

func (a *archive) Grouped() bool { return true }

func (a *archive) scope(position json.RawMessage) (clickhouse.Range, error) {
	r := clickhouse.Range{Since: a.filter.Since, Until: a.filter.Until}
	if position == nil {
		return r, nil
	}
	if err := json.Unmarshal(position, &r.After); err != nil {
		return r, fmt.Errorf("read the saved position: %w", err)
	}
	return r, nil
}

func (a *archive) Total(ctx context.Context, position json.RawMessage) (uint64, string, error) {
	if a.filter.Execution != "" {
		return 0, "facts", nil
	}
	r, err := a.scope(position)
	if err != nil {
		return 0, "", err
	}
	n, err := a.store.CountFacts(ctx, r)
	return n, "facts", err
}

func (a *archive) Facts(ctx context.Context, position json.RawMessage) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		r, err := a.scope(position)
		if err != nil {
			yield(Fact{}, err)
			return
		}
		a.done, a.current = r.After, r.After
		all := a.store.Facts(ctx, r)
		if a.filter.Execution != "" {
			all = a.store.Events(ctx, a.filter.Execution, -1)
		}
		for e, err := range all {
			if err != nil {
				yield(Fact{}, err)
				return
			}
			if e.Topic != events.TopicExecutions {
				continue
			}
			if e.Event.Subject != a.current {
				a.done, a.current = a.current, e.Event.Subject
			}
			a.facts++
			if !yield(Fact{e.Event, e.ReceivedAt}, nil) {
				return
			}
		}
		a.done = a.current
	}
}

func (a *archive) Position() (json.RawMessage, uint64) {
	at, _ := json.Marshal(a.done) // A string always can be.
	return at, a.facts
}
