package execution

import (
	"strings"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

const (
	keptAttempts     = 8
	maxUnknownTypes  = 64
	maxTextBytes     = 4096
	minYear, maxYear = 1970, 2261 // what ClickHouse's DateTime64(9) holds
)

// State is what is known of one execution. Make it with New or Load. It is not safe for concurrent use.
type State struct {
	id      string
	seen    Seen
	facts   map[string]uint64 // by type, those with a deterministic id
	others  map[string]uint64 // the same for types not known here, the first maxUnknownTypes by name
	unknown uint64            // facts skipped: type or stream not known here
	limited bool              // a bound was met, counts and ranges are lower bounds
	// changes counts what changed the state and no count of facts shows: once a bound was met, and once it was deleted.
	changes uint64

	requested slot[*executionv1.ExecutionRequested]
	cancelled slot[*executionv1.CancelRequested]
	deleted   log[*executionv1.ExecutionDeleted]
	attempts  map[uint32]*attempt
	numbers   interval.Set // the attempts met
	waiting   int          // bytes that wait in the streams
	// unfolded are the numbers that Heard was told of. They are not stored.
	unfolded map[uint32]uint64
}

// New returns the state of an execution of which nothing is known.
func New(id string) *State {
	return &State{id: id, facts: map[string]uint64{}, others: map[string]uint64{}, attempts: map[uint32]*attempt{}}
}

// Fold returns the row of events. Producers that gave no time leave it unknown.
func Fold(id string, es []events.Event) Row {
	s := New(id)
	for _, e := range es {
		s.Apply(e, time.Time{})
	}
	return s.Row()
}

// ID is the execution's id.
func (s *State) ID() string { return s.id }

// Version is the number of distinct facts folded: of two rows of an execution the one with the greater
// version knows more. Once a bound was met it goes on with every fact that changes the state, so that a row never has the version of
// one that knows less.
func (s *State) Version() uint64 {
	if s.Deleted() {
		return s.deletedVersion()
	}
	return s.seen.Len() + s.changes
}

// Apply folds one fact and says whether that changed the state, which has to be stored then. A fact that is not new may do so too: when a
// bound is met, and when it says something else under an id that was met before. receivedAt is the record's time at the
// broker, used where the producer gave no time; zero when that is not known either. The event's payload is kept in part: nobody
// may change it later. An event of another execution is ignored.
func (s *State) Apply(e events.Event, receivedAt time.Time) (changed bool) {
	if e.Subject != s.id {
		return false
	}
	if d, ok := e.Data.(*executionv1.ExecutionDeleted); ok {
		return s.forget(e, d, usable(e.HappenedAt(receivedAt)))
	}
	if s.Deleted() {
		return false
	}
	unknown, limited := !known(e), s.limited
	m, changed, source := s.seen.add(e, unknown)
	switch m {
	case metNew:
		s.count(e, unknown)
	case metUnsure:
		s.limited = true
	}
	added := m == metNew || m == metForeign
	if !unknown {
		changed = s.fold(e, origin{source, e.Sequence}, usable(e.HappenedAt(receivedAt)), added) || changed
	}
	changed = changed || s.limited != limited
	if changed && !added && s.limited {
		s.changes++
	}
	return changed
}

// known says whether the fold has a meaning for the event.
func known(e events.Event) bool {
	switch d := e.Data.(type) {
	case nil:
		return false
	case *executionv1.OutputChunk:
		return streamIndex(d.GetStream()) >= 0
	case *executionv1.OutputReadFailed:
		return streamIndex(d.GetStream()) >= 0
	default:
		_, err := events.TypeOf(d)
		return err == nil
	}
}

func (s *State) count(e events.Event, unknown bool) {
	if unknown {
		s.unknown++
	}
	if e.Data != nil {
		if _, ok := s.facts[e.Type]; ok || len(s.facts) < maxUnknownTypes {
			s.facts[e.Type]++
		}
		return
	}
	countBounded(s.others, e.Type, 1)
}

// countBounded counts in a map that keeps the maxUnknownTypes first names: a name in the end is never one that
// was dropped before, so its count is whole.
func countBounded(m map[string]uint64, name string, n uint64) {
	if _, ok := m[name]; !ok {
		name = strings.Clone(name)
	}
	m[name] += n
	if len(m) <= maxUnknownTypes {
		return
	}
	last := name
	for other := range m {
		last = max(last, other)
	}
	delete(m, last)
}

// fold joins the fact's content and says whether that changed anything. It does so also for a fact that was met before: joining twice
// changes nothing, and a second content under one id is noticed.
func (s *State) fold(e events.Event, from origin, at time.Time, added bool) (changed bool) {
	switch d := e.Data.(type) {
	case *executionv1.ExecutionRequested:
		return s.requested.join(fact[*executionv1.ExecutionRequested]{from, at, trimRequested(d)})
	case *executionv1.CancelRequested:
		return s.cancelled.join(fact[*executionv1.CancelRequested]{from, at, &executionv1.CancelRequested{RequestedBy: clip(d.GetRequestedBy()), Reason: clip(d.GetReason())}})
	case *executionv1.RunnerHeartbeat, *executionv1.CordonRequested, *executionv1.RetryRequested, *executionv1.StdinPart:
		return false
	}
	a, fresh := s.attempt(e.Attempt)
	if a == nil {
		return fresh
	}
	var kept bool
	if d, ok := e.Data.(*executionv1.OutputChunk); ok {
		changed, kept = a.streams[streamIndex(d.GetStream())].add(d.GetOffset(), d.GetData(), from, added, &s.waiting)
	} else {
		changed, kept = a.fold(e.Data, from, at, &s.waiting)
	}
	s.limited = s.limited || !kept
	return changed || fresh
}

// attempt returns the attempt's state, nil when the attempt is not kept, and whether it was not met before. Only the highest
// are kept: which ones does not depend on the order, since an attempt that is among the highest in the end always was.
func (s *State) attempt(number uint32) (a *attempt, fresh bool) {
	if number == 0 {
		return nil, false
	}
	if a, ok := s.attempts[number]; ok {
		return a, false
	}
	fresh = !s.numbers.Contains(uint64(number))
	if !s.numbers.Add(interval.Range{Start: uint64(number), End: uint64(number) + 1}, maxRanges) {
		s.limited, fresh = true, false
	}
	if len(s.attempts) == keptAttempts {
		lowest := number
		for n := range s.attempts {
			lowest = min(lowest, n)
		}
		if lowest == number {
			return nil, fresh
		}
		for i := range s.attempts[lowest].streams {
			s.waiting -= s.attempts[lowest].streams[i].digest.waitingBytes()
		}
		delete(s.attempts, lowest)
	}
	a = &attempt{number: number}
	s.attempts[number] = a
	return a, true
}

// latest is the highest attempt, nil when none is known.
func (s *State) latest() *attempt {
	var highest *attempt
	for n, a := range s.attempts {
		if highest == nil || n > highest.number {
			highest = a
		}
	}
	return highest
}

// trimRequested keeps what the row shows. Environment, stdin and parameters stay in the log.
func trimRequested(d *executionv1.ExecutionRequested) *executionv1.ExecutionRequested {
	t := &executionv1.ExecutionRequested{Timeout: d.GetTimeout(), Labels: d.GetLabels(), RequestedBy: clip(d.GetRequestedBy()), Retry: d.GetRetry()}
	if a := d.GetAction(); a != nil {
		t.What = &executionv1.ExecutionRequested_Action{Action: &executionv1.Action{Name: clip(a.GetName())}}
	}
	if c := d.GetCommand(); c != nil {
		t.What = &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: c.GetArgv(), Directory: c.GetDirectory()}}
	}
	return t
}

// usable drops times that no row can hold.
func usable(t time.Time) time.Time {
	if t.IsZero() || t.Year() < minYear || t.Year() > maxYear {
		return time.Time{}
	}
	return t.UTC().Round(0)
}

// clip bounds a text for people.
func clip(s string) string {
	if len(s) <= maxTextBytes {
		return strings.Clone(s)
	}
	const mark = "…"
	s = s[:maxTextBytes-len(mark)]
	return strings.ToValidUTF8(s[:len(trimIncomplete([]byte(s)))], "\uFFFD") + mark
}
