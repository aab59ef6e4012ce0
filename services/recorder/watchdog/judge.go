package watchdog

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/recorder/forgery"
)

// reason is why an execution is looked at.
type reason uint8

const (
	nothing reason = iota
	expired
	silent
	forgot
	unsealed
	decide
	due
	returned
	unheard
)

// overdue says why an execution is to be looked at, from the table alone.
func (w *Watchdog) overdue(o *entry, now time.Duration, wall int64) reason {
	late := o.deadline != 0 && wall >= o.deadline
	switch o.stage {
	case requested, prepared:
		if late {
			return expired
		}
	case claimed:
		if now-max(o.listed, w.base) > w.c.Silence() {
			return unheard
		}
	case running, exited:
		if o.runner == nil {
			return decide // A row that says not who has it: the story may.
		}
		silence := w.c.Silence()
		since := max(o.listed, w.base)
		switch {
		case now-max(o.runner.heard, w.base) > silence:
			return silent
		case o.runner.beat-since > silence:
			return forgot
		case o.stage == exited && late:
			return unsealed
		}
	case ended, waiting, lost:
		switch {
		case o.back:
			return returned
		case o.stage == ended:
			return decide
		case o.stage == waiting && late:
			return due
		}
	}
	return nothing
}

// verdict is what is to be said, and what becomes of the entry.
type verdict struct {
	topic string
	event events.Event // Nothing is said when its id is empty.
	said  string       // For the log and the metrics.
	keep  bool
	next  entry
}

// workRetention is how long work stays in Kafka (events.Topics): what no launch spec bounds expires with it.
const workRetention = 7 * 24 * time.Hour

var producer = events.Producer{Name: "watchdog", Source: "/verbatim/watchdog"}

// matter is one execution that is judged.
type matter struct {
	w        *Watchdog
	story    *clickhouse.Story
	o        entry
	why      reason
	wall     time.Time
	standing execution.Standing
}

// judge works out from the archived facts what is to be said. It is pure but for the time.
func (w *Watchdog) judge(story *clickhouse.Story, o entry, why reason) (verdict, error) {
	story = unforged(story)
	state := execution.New(story.ExecutionID)
	for i := range story.Facts {
		state.Apply(story.Facts[i].Event, story.Facts[i].ReceivedAt)
	}
	for attempt, sources := range story.Last {
		for source, last := range sources {
			if runnerOf(source) != "" {
				state.Heard(attempt, last)
			}
		}
	}
	m := matter{w, story, o, why, w.c.Clock.Now(), state.Standing()}
	s := m.standing
	switch {
	case o.attempt > s.Attempt && o.stage == requested && why == expired:
		return m.neverPrepared(o.attempt)
	case s.Lost && why == returned && o.attempt == s.Attempt:
		return m.returned()
	case s.Closed() && s.Next != executionv1.RetryOn_RETRY_ON_UNSPECIFIED:
		return m.retry()
	case s.Closed():
		return m.closed(), nil
	case s.Ran || s.Ended || m.listed():
		return m.running()
	case s.Prepared:
		return m.prepared()
	case s.Attempt == 0 && why == expired:
		return m.neverPrepared(1)
	}
	return m.stay(requested, m.wall.Add(w.c.PrepareWithin+w.c.Margin)), nil
}

// unforged leaves out what others said in the watchdog's name. They would have the next number, and the last word.
func unforged(story *clickhouse.Story) *clickhouse.Story {
	forged := forgery.In(story.Facts, producer)
	return &clickhouse.Story{
		ExecutionID: story.ExecutionID, Last: story.Last,
		Facts: slices.DeleteFunc(slices.Clone(story.Facts), func(f clickhouse.ArchivedEvent) bool { return forged(&f.Event) }),
	}
}

// stay says nothing, and when to look again.
func (m matter) stay(s stage, deadline time.Time) verdict {
	next := m.o
	if next.attempt != m.standing.Attempt {
		next = entry{attempt: m.standing.Attempt, partition: m.o.partition, runner: m.o.runner, listed: m.w.elapsed()}
	}
	next.stage, next.back, next.deadline = s, false, 0
	next.retries = m.standing.Retry.GetRetries() > 0 && !m.standing.Cancelled
	if !deadline.IsZero() {
		next.deadline = deadline.UnixMilli()
	}
	return verdict{keep: true, next: next}
}

// say makes the watchdog's next fact about an attempt.
func (m matter) say(v verdict, said string, attempt uint32, data proto.Message) (verdict, error) {
	number := uint64(1)
	for i := range m.story.Facts {
		if f := &m.story.Facts[i].Event; f.Source == producer.Source && f.Attempt == attempt {
			number = max(number, f.Sequence+1)
		}
	}
	e, err := producer.Event(m.story.ExecutionID, attempt, number, m.wall, data)
	if err != nil {
		return verdict{}, fmt.Errorf("say %s of %s: %w", said, m.story.ExecutionID, err)
	}
	for _, f := range m.story.Facts {
		if f.Event.Traceparent != "" {
			e.Traceparent = f.Event.Traceparent
			break
		}
	}
	v.topic, v.event, v.said = events.TopicExecutions, e, said
	return v, nil
}

func (m matter) returned() (verdict, error) {
	v := m.stay(running, time.Time{})
	if m.standing.Ended {
		v = m.stay(exited, m.wall.Add(m.w.c.SealWithin))
	}
	return m.say(v, "runner returned", m.standing.Attempt, &executionv1.RunnerReturned{Runner: m.o.runner.id, HeardAt: timestamp(m.o.runner.beatAt)})
}

// closed is for an execution of which nothing more is expected. A runner that was lost may come back.
func (m matter) closed() verdict {
	if !m.standing.Lost || m.standing.Sealed {
		return verdict{}
	}
	if m.lastOf(events.TypeRunnerLost).Data.(*executionv1.RunnerLost).GetCause() == executionv1.LossCause_LOSS_CAUSE_NOT_SEALED {
		return m.stay(idle, time.Time{})
	}
	return m.stay(lost, time.Time{})
}

// retry goes on to the next attempt.
func (m matter) retry() (verdict, error) {
	s := m.standing
	if s.RetryAt.IsZero() { // Nothing was said, or somebody else said what is no time.
		s.RetryAt = m.scheduled()
	}
	switch {
	case s.RetryAt.IsZero():
		at := m.receivedLast(events.TypeOutputSealed, events.TypeRunnerLost).Add(pause(s.Retry, m.story.ExecutionID, s.Attempt))
		return m.say(m.stay(waiting, at), "retry scheduled", s.Attempt, &executionv1.RetryScheduled{
			NextAttempt: s.Attempt + 1, NotBefore: timestamp(at), Because: s.Next,
		})
	case m.wall.Before(s.RetryAt):
		return m.stay(waiting, s.RetryAt), nil
	}
	v, err := m.say(m.stay(requested, time.Time{}), "retry requested", s.Attempt+1, m.again())
	v.topic = events.TopicRequests
	v.next = entry{
		attempt: s.Attempt + 1, partition: m.o.partition, stage: requested, retries: true,
		deadline: m.wall.Add(m.w.c.PrepareWithin + m.w.c.Margin).UnixMilli(),
	}
	return v, err
}

// scheduled is when the watchdog itself said that the next attempt follows; zero when it did not.
func (m matter) scheduled() (at time.Time) {
	for i := range m.story.Facts {
		f := &m.story.Facts[i].Event
		if d, ok := f.Data.(*executionv1.RetryScheduled); ok && f.Source == producer.Source && f.Attempt == m.standing.Attempt {
			at = d.GetNotBefore().AsTime()
		}
	}
	return at
}

// again is the request once more.
func (m matter) again() *executionv1.RetryRequested {
	for i := range m.story.Facts {
		f := &m.story.Facts[i]
		if asked, ok := f.Event.Data.(*executionv1.ExecutionRequested); ok {
			return &executionv1.RetryRequested{Request: asked, RequestedAt: timestamp(f.Event.HappenedAt(f.ReceivedAt))}
		}
	}
	return &executionv1.RetryRequested{} // There is no policy without a request.
}

// listed says that a heartbeat named the attempt.
func (m matter) listed() bool {
	return m.o.runner != nil && m.o.runner.beat > 0 && m.o.attempt == m.standing.Attempt && m.o.stage == running
}

// runner is who has the attempt, empty when it is no runner of Verbatim.
func (m matter) runner() string {
	for source := range m.story.Last[m.standing.Attempt] {
		if id := runnerOf(source); id != "" {
			return id
		}
	}
	if m.listed() {
		return m.o.runner.id
	}
	return ""
}

// running is for an attempt that somebody has, and of which the output has no end yet.
func (m matter) running() (verdict, error) {
	s, id := m.standing, m.runner()
	if id == "" {
		return m.stay(idle, time.Time{}), nil // An outside producer's: it closes it.
	}
	now := m.stay(running, time.Time{})
	if s.Ended {
		now = m.stay(exited, m.receivedLast(events.TypeProcessExited, events.TypeWaitFailed, events.TypeStartFailed).Add(m.w.c.SealWithin))
	}
	if now.next.runner == nil || now.next.runner.id != id {
		m.w.mu.Lock()
		now.next.runner, now.next.listed = m.w.runner(id), m.w.elapsed()
		m.w.mu.Unlock()
		return now, nil // Its silence begins now.
	}
	cause := executionv1.LossCause_LOSS_CAUSE_UNSPECIFIED
	switch {
	case m.o.attempt != s.Attempt:
	case m.why == silent:
		cause = executionv1.LossCause_LOSS_CAUSE_SILENT
	case m.why == forgot:
		cause = executionv1.LossCause_LOSS_CAUSE_FORGOTTEN
	case m.why == unsealed && s.Ended && !m.wall.Before(time.UnixMilli(now.next.deadline)):
		cause = executionv1.LossCause_LOSS_CAUSE_NOT_SEALED
	}
	if cause == executionv1.LossCause_LOSS_CAUSE_UNSPECIFIED {
		return now, nil
	}
	return m.lose(id, cause)
}

// lose says that nobody is expected to say more about the attempt.
func (m matter) lose(id string, cause executionv1.LossCause) (verdict, error) {
	s := m.standing
	var since time.Time
	if m.o.runner != nil {
		since = m.o.runner.beatAt
	}
	for i := range m.story.Facts {
		if f := &m.story.Facts[i]; f.Event.Source == runnerSource+id && f.ReceivedAt.After(since) {
			since = f.ReceivedAt
		}
	}
	v := m.stay(lost, time.Time{})
	switch {
	case v.next.retries:
		v.next.stage = ended
	case cause == executionv1.LossCause_LOSS_CAUSE_NOT_SEALED:
		v.next.stage = idle
	}
	return m.say(v, "runner lost", s.Attempt, &executionv1.RunnerLost{
		Runner: id, SilentSince: timestamp(since), LastSequence: m.story.Last[s.Attempt][runnerSource+id], Cause: cause,
	})
}

// prepared is for an attempt that nobody has started.
func (m matter) prepared() (verdict, error) {
	by, received := m.standing.StartBy, m.receivedLast(events.TypePrepared)
	if by.IsZero() {
		by = received.Add(workRetention)
	}
	deadline := by.Add(m.w.c.Margin)
	switch {
	case m.lastOf(events.TypePrepared).Source != "/verbatim/preparer":
		return m.stay(idle, time.Time{}), nil
	case m.why == unheard && m.o.attempt == m.standing.Attempt:
		id := ""
		if m.o.runner != nil {
			id = m.o.runner.id
		}
		return m.lose(id, executionv1.LossCause_LOSS_CAUSE_UNHEARD)
	case m.wall.Before(deadline):
		v := m.stay(prepared, deadline)
		v.next.preparedAt = received.UnixMilli()
		return v, nil
	}
	return m.say(verdict{}, "start expired", m.standing.Attempt, &executionv1.StartFailed{
		Reason:  executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED,
		Message: fmt.Sprintf("no runner started it between %s and %s", received.UTC().Format(time.RFC3339), by.UTC().Format(time.RFC3339)),
	})
}

func (m matter) neverPrepared(attempt uint32) (verdict, error) {
	return m.say(verdict{}, "preparation expired", attempt, notPrepared(m.w.c.PrepareWithin))
}

func notPrepared(within time.Duration) *executionv1.PreparationFailed {
	return &executionv1.PreparationFailed{
		Reason:  executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_EXPIRED,
		Message: fmt.Sprintf("nobody prepared it within %s", within),
	}
}

// receivedLast is when the broker got the last fact of these types about the latest attempt.
func (m matter) receivedLast(types ...string) (at time.Time) {
	for i := range m.story.Facts {
		f := &m.story.Facts[i]
		for _, typ := range types {
			if f.Event.Type == typ && f.Event.Attempt == m.standing.Attempt && f.ReceivedAt.After(at) {
				at = f.ReceivedAt
			}
		}
	}
	return at
}

// lastOf is the last fact of a type about the latest attempt.
func (m matter) lastOf(typ string) (e events.Event) {
	for i := range m.story.Facts {
		if f := m.story.Facts[i].Event; f.Type == typ && f.Attempt == m.standing.Attempt {
			e = f
		}
	}
	return e
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
