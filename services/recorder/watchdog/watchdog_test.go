package watchdog

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

var (
	started = &executionv1.ProcessStarted{Pid: 1, Runner: "r1"}
	output  = &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Data: []byte("x")}
	failed  = &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 1}}
	sealed  = &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{{Stream: 1}, {Stream: 2}}}
)

// silence is longer than two heartbeats of two seconds.
const silence = 6 * time.Second

func TestARunnerFallsSilentAndComesBack(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id, quiet, over := newID(t), newID(t), newID(t)
	for _, i := range []string{id, quiet, over} {
		s.request(i, nil)
		s.prepare(i, 1)
		s.runner(i, 1, started, output)
	}
	s.runner(over, 1, failed, sealed)
	s.beat(id, quiet)
	s.later(w, 10*time.Second, func() { s.beat(id, quiet) })
	s.wantSaid(w, id) // It lives.

	s.later(w, silence)
	lost := s.wantSaid(w, id, "RunnerLost")[0].(*executionv1.RunnerLost)
	if lost.GetRunner() != "r1" || lost.GetLastSequence() != 2 || lost.GetCause() != executionv1.LossCause_LOSS_CAUSE_SILENT || !lost.GetSilentSince().IsValid() {
		t.Errorf("the evidence is %v", lost)
	}
	s.wantSaid(w, quiet, "RunnerLost")
	s.wantSaid(w, over)
	s.later(w, silence)
	s.wantSaid(w, id, "RunnerLost") // Once.

	// One says something, the other is only listed again. Then they fall silent once more.
	s.runner(id, 1, output)
	s.beat(quiet)
	s.wantSaid(w, quiet, "RunnerLost", "RunnerReturned")
	s.wantSaid(w, id, "RunnerLost")
	s.later(w, silence)
	again := s.wantSaid(w, id, "RunnerLost", "RunnerLost")[1].(*executionv1.RunnerLost)
	if again.GetLastSequence() != 3 {
		t.Errorf("the evidence is %v", again)
	}
	s.wantSaid(w, quiet, "RunnerLost", "RunnerReturned", "RunnerLost")
}

// A runner that lives and does not have what it had, since its data folder is gone.
func TestARunnerForgets(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id, kept := newID(t), newID(t)
	for _, i := range []string{id, kept} {
		s.prepare(i, 1)
		s.runner(i, 1, started)
	}
	s.beat(id, kept)
	s.later(w, 12*time.Second, func() { s.beat(kept) })
	lost := s.wantSaid(w, id, "RunnerLost")[0].(*executionv1.RunnerLost)
	if lost.GetCause() != executionv1.LossCause_LOSS_CAUSE_FORGOTTEN {
		t.Errorf("the evidence is %v", lost)
	}
	s.wantSaid(w, kept)
}

// Nobody is silent while the watchdog could not have heard anybody.
func TestTheWatchdogWasAway(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := newID(t)
	s.prepare(id, 1)
	s.runner(id, 1, started)
	s.beat(id)
	s.passes(w)
	s.archive.rows = []clickhouse.OpenExecution{{ExecutionID: id, Attempt: 1, Status: execution.StatusRunning, Runner: "r1"}}

	s.clock.add(time.Hour) // This process stood still.
	s.passes(w)
	s.later(w, 2*time.Second)
	s.wantSaid(w, id)

	addr := s.broker.Addr()
	s.must(s.broker.Stop(context.Background()))
	s.clock.add(2 * time.Second)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if w.pass(short) == nil {
		t.Fatal("a pass without a broker is none")
	}
	s.clock.add(2 * time.Second)
	s.start(addr)
	s.until("the group is back", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for p := range w.c.Partitions {
			if !w.owns(p) {
				return false
			}
		}
		return true
	})
	s.until("the watchdog watches again", func() bool { return s.pass(w) == nil })
	s.later(w, 2*time.Second)
	s.wantSaid(w, id)
	// The group may come together once more: then the table is made anew, and every silence begins anew.
	s.until("the runner is lost", func() bool { s.later(w, silence); return len(s.said(id)) > 0 })
	s.wantSaid(w, id, "RunnerLost")
}

// A watchdog that starts knows what is open from the rows, and begins to listen when it starts.
func TestAStart(t *testing.T) {
	t.Parallel()
	s := open(t)
	id, ended, foreign, stranger := newID(t), newID(t), newID(t), newID(t)
	first := s.watch(true)
	for _, i := range []string{id, ended} {
		s.request(i, nil)
		s.prepare(i, 1)
		s.runner(i, 1, started, output)
	}
	s.say(events.TopicExecutions, "agent", "/ci/agent", foreign, 1, &executionv1.ProcessStarted{Runner: "agent"})
	s.say(events.TopicExecutions, "preparer", "/verbatim/preparer", stranger, 1, &executionv1.Prepared{Argv: []string{"x"}})
	s.runner(ended, 1, failed, sealed)
	s.passes(first)
	// The rows are older than the archive.
	for _, i := range []string{id, ended, foreign} {
		s.archive.rows = append(s.archive.rows, clickhouse.OpenExecution{ExecutionID: i, Attempt: 1, Status: execution.StatusRunning, Runner: "r1"})
	}
	s.archive.rows = append(s.archive.rows, clickhouse.OpenExecution{ExecutionID: stranger, Attempt: 1, Status: execution.StatusPrepared})
	first.restart()
	s.passes(first)
	s.wantSaid(first, id)
	s.later(first, silence)
	s.wantSaid(first, id, "RunnerLost")
	for _, i := range []string{ended, foreign, stranger} {
		s.wantSaid(first, i)
	}
	if first.watches(ended) {
		t.Error("what has ended is still watched")
	}
}

// What runs for longer than the rows are looked at every minute is known after a start all the same.
func TestAStartAfterLong(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := events.FirstExecutionID(s.clock.Now().Add(-8 * 24 * time.Hour))
	s.request(id, nil)
	s.prepare(id, 1)
	s.runner(id, 1, started)
	s.passes(w)
	s.archive.rows = []clickhouse.OpenExecution{{ExecutionID: id, Attempt: 1, Status: execution.StatusRunning, Runner: "r1"}}
	w.restart()
	s.later(w, silence)
	s.wantSaid(w, id, "RunnerLost")
}

// Whoever acts in the same moment says the same.
func TestTwoActAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	patient := func(c *Config) { c.PrepareWithin = time.Hour }
	w, other := s.watch(true, patient), s.watch(false, patient)
	for p := range w.c.Partitions {
		other.Owned(t.Context(), p)
	}
	id := newID(t)
	s.request(id, &executionv1.RetryPolicy{Retries: 1, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_LOST}, Backoff: durationpb.New(4 * time.Second)})
	s.prepare(id, 1)
	s.runner(id, 1, started)
	s.beat(id)
	s.passes(w)
	known := 0
	tell := func() {
		facts := s.archive.of(id)
		other.Observe(facts[known:])
		known = len(facts)
	}
	tell()
	for range 12 {
		s.clock.add(time.Second)
		s.until("everything is heard", func() bool { return w.beatsRead.Load() > 0 && other.beatsRead.Load() > 0 })
		// Neither sees what the other one says now.
		thaw := s.archive.freeze()
		s.must(w.pass(t.Context()))
		s.must(other.pass(t.Context()))
		thaw()
		s.must(s.pass(w))
		tell()
		s.must(s.pass(other))
	}
	s.wantSaid(w, id, "RunnerLost", "RetryScheduled")
	copies := 0
	for _, f := range s.archive.of(id) {
		if f.Event.Source == producer.Source {
			copies++
		}
	}
	if copies < 3 {
		t.Errorf("%d facts were said, so the two did not act at once and this test shows nothing", copies)
	}
	if got := s.commands(); len(got) == 0 || got[0].ID != id+"/2/watchdog/1" {
		t.Errorf("the next attempt was requested by %v", got)
	}
}

// restart forgets what a process that dies forgets.
func (w *Watchdog) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.open)
	w.scanSoon, w.longSoon = true, true
}

func (w *Watchdog) watches(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, open := w.open[uuid.MustParse(id)]
	return open
}

// commands are the retries that were requested, each once.
func (s *theatre) commands() (out []events.Event) {
	s.Helper()
	ends, err := s.admin.EndOffsets(s.Context(), events.TopicRequests)
	s.must(err)
	seen := map[string]bool{}
	for p, end := range ends {
		r, err := kafka.NewPartitionReader(s.kafka, events.TopicRequests, p, 0)
		s.must(err)
		for r.Offset() < end {
			record, err := r.Next(s.Context())
			s.must(err)
			e, err := codec.FromMessage(record.Message())
			s.must(err)
			if e.Type == events.TypeRetryRequested && !seen[e.ID] {
				seen[e.ID] = true
				out = append(out, e)
			}
		}
		s.must(r.Close())
	}
	return out
}

func TestRetries(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true, func(c *Config) { c.PrepareWithin = time.Hour })
	policy := &executionv1.RetryPolicy{Retries: 2, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_FAILED}, Backoff: durationpb.New(8 * time.Second)}
	id, plain, cancelled := newID(t), newID(t), newID(t)
	s.request(id, policy)
	s.request(plain, nil)
	s.request(cancelled, policy)
	for _, i := range []string{id, plain, cancelled} {
		s.prepare(i, 1)
		s.runner(i, 1, started, failed)
	}
	s.passes(w)
	s.wantSaid(w, id) // Not before its output is sealed.
	for _, i := range []string{id, plain, cancelled} {
		s.runner(i, 1, sealed)
	}
	s.passes(w)
	scheduled := s.wantSaid(w, id, "RetryScheduled")[0].(*executionv1.RetryScheduled)
	if wait := scheduled.GetNotBefore().AsTime().Sub(s.clock.Now()); scheduled.GetNextAttempt() != 2 || wait != pause(policy, id, 1) {
		t.Errorf("%v, in %s", scheduled, wait)
	}
	s.wantSaid(w, cancelled, "RetryScheduled")
	s.wantSaid(w, plain)
	s.say(events.TopicExecutions, "gateway.x", "/verbatim/gateway", cancelled, 0, &executionv1.CancelRequested{})

	// The recorder dies meanwhile; the next one knows from the row.
	s.archive.rows = []clickhouse.OpenExecution{{ExecutionID: id, Attempt: 1, Status: execution.StatusRetrying}, {ExecutionID: cancelled, Attempt: 1, Status: execution.StatusRetrying}}
	w.restart()
	s.passes(w)
	if got := s.commands(); len(got) != 0 {
		t.Fatalf("requested before its time: %v", got)
	}
	s.later(w, 9*time.Second)
	got := s.commands()
	if len(got) != 1 || got[0].Subject != id || got[0].Attempt != 2 {
		t.Fatalf("requested are %v", got)
	}
	asked := got[0].Data.(*executionv1.RetryRequested)
	if !proto.Equal(asked.GetRequest(), command(policy)) || !asked.GetRequestedAt().IsValid() {
		t.Errorf("requested is %v", asked)
	}

	// The second and the third attempt fail too; that was the last.
	for _, attempt := range []uint32{2, 3} {
		s.prepare(id, attempt)
		s.runner(id, attempt, started, failed, sealed)
		s.later(w, 18*time.Second)
	}
	if got := s.commands(); len(got) != 2 || got[0].Attempt+got[1].Attempt != 5 {
		t.Errorf("requested are %v", got)
	}
}

func TestWhatNobodyTakes(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	unprepared, unstarted, unsealed, listed := newID(t), newID(t), newID(t), newID(t)
	s.say(events.TopicRequests, "gateway", "/verbatim/gateway", unprepared, 0, command(nil))
	s.prepare(unstarted, 1)
	s.prepare(listed, 1)
	s.prepare(unsealed, 1)
	s.runner(unsealed, 1, started, failed)
	have := func() { s.beat(unsealed, listed) }
	s.later(w, 8*time.Second, have)
	for _, i := range []string{unprepared, unstarted, unsealed, listed} {
		s.wantSaid(w, i)
	}
	for n := 0; n < 100 && len(s.said(unprepared)) == 0; n++ { // 10 s and 1 s, by the broker's clock, which may be ahead of the test's.
		s.later(w, time.Second, have)
	}
	if f := s.wantSaid(w, unprepared, "PreparationFailed")[0].(*executionv1.PreparationFailed); f.GetReason() != executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_EXPIRED {
		t.Errorf("%v", f)
	}
	if facts := s.archive.of(unprepared); len(facts) != 2 || facts[0].Event.Type != events.TypeExecutionRequested {
		t.Errorf("the log does not tell what was asked for: %v", facts)
	}
	s.later(w, 20*time.Second, have) // 20 s; 30 s and 1 s
	if f := s.wantSaid(w, unstarted, "StartFailed")[0].(*executionv1.StartFailed); f.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED {
		t.Errorf("%v", f)
	}
	if f := s.wantSaid(w, unsealed, "RunnerLost")[0].(*executionv1.RunnerLost); f.GetCause() != executionv1.LossCause_LOSS_CAUSE_NOT_SEALED {
		t.Errorf("%v", f)
	}
	s.wantSaid(w, listed) // A runner has it, and fetches its standard input.
	s.later(w, silence)
	s.wantSaid(w, listed, "RunnerLost")
	for _, i := range []string{unprepared, unstarted, unsealed} {
		if n := len(s.said(i)); n != 1 {
			t.Errorf("%d facts about one end", n)
		}
	}
}

// While the archive is away nothing is said, and nothing is forgotten.
func TestTheArchiveIsAway(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := newID(t)
	s.prepare(id, 1)
	s.runner(id, 1, started)
	s.passes(w)
	s.archive.away = errors.New("no database")
	s.later(w, silence)
	s.archive.away = nil
	s.wantSaid(w, id, "RunnerLost")
}

// A runner claims an attempt and dies before it said so: nobody else takes it, and it is not waiting either.
func TestARunnerClaimsAndIsNotHeardOf(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	vanished, listed, queued, elsewhere := newID(t), newID(t), newID(t), newID(t)
	for _, id := range []string{listed, vanished, queued} {
		s.prepare(id, 1)
		s.say(events.TopicWork, "preparer.work", "/verbatim/preparer", id, 1, &executionv1.Prepared{Argv: []string{"x"}})
	}
	s.prepare(elsewhere, 1) // Its preparer died before it was in the queue.
	s.claim("r7", vanished, listed)
	here := func() { s.beat(listed) }
	s.passes(w)
	s.later(w, unusual+4*time.Second, here)
	for _, id := range []string{vanished, listed, queued, elsewhere} {
		s.wantSaid(w, id)
	}
	s.later(w, 3*time.Second, here)
	lost := s.wantSaid(w, vanished, "RunnerLost")[0].(*executionv1.RunnerLost)
	if lost.GetCause() != executionv1.LossCause_LOSS_CAUSE_UNHEARD || lost.GetRunner() != "r7" || lost.GetLastSequence() != 0 {
		t.Errorf("the evidence is %v", lost)
	}
	status := func() string {
		var facts []events.Event
		for _, f := range s.archive.of(vanished) {
			facts = append(facts, f.Event)
		}
		return execution.Fold(vanished, facts).Status
	}
	if got := status(); got != execution.StatusLost {
		t.Errorf("the row is %s", got)
	}
	for _, id := range []string{listed, queued, elsewhere} {
		s.wantSaid(w, id)
	}

	// It comes back and starts it.
	s.say(events.TopicExecutions, "runner", "/verbatim/runner/r7", vanished, 1, started)
	s.passes(w)
	s.wantSaid(w, vanished, "RunnerLost")
	if got := status(); got != execution.StatusRunning {
		t.Errorf("the row of what came back is %s", got)
	}
	s.later(w, 25*time.Second, here) // start_by, and the margin
	for _, id := range []string{queued, elsewhere} {
		if f := s.wantSaid(w, id, "StartFailed")[0].(*executionv1.StartFailed); f.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED {
			t.Errorf("%v", f)
		}
	}
}

// What is heard in the wrong order, twice, or too late makes no loss.
func TestStragglers(t *testing.T) {
	t.Parallel()
	s := open(t)
	w := s.watch(true)
	id := newID(t)
	s.prepare(id, 1)
	s.runner(id, 1, started, output, failed, sealed)
	s.passes(w)
	facts := s.archive.of(id)
	for i := len(facts) - 1; i >= 0; i-- {
		w.Observe(facts[i : i+1])
	}
	if !w.watches(id) {
		t.Fatal("the stragglers are not taken for an open execution, so this test shows nothing")
	}
	s.later(w, silence)
	s.wantSaid(w, id)
	if w.watches(id) {
		t.Error("it is still watched")
	}
}

func TestManyOpenExecutions(t *testing.T) {
	w := &Watchdog{c: Config{}.withDefaults(), began: time.Now(), open: map[uuid.UUID]entry{}, runners: map[string]*runner{}, owned: map[int]*ownership{0: {ctx: t.Context(), set: true}}}
	var err error
	if w.metrics, err = newMetrics(w.c.Registry); err != nil {
		t.Fatal(err)
	}
	const n = 50_000 // A million takes the same bytes each.
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	e := events.Event{Source: "/verbatim/runner/r1", Type: events.TypeProcessStarted, Attempt: 1, Sequence: 1, Data: started}
	for range n {
		e.Subject = newID(t)
		w.Observe([]clickhouse.ArchivedEvent{{Event: e}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapAlloc - before.HeapAlloc) / n
	if len(w.open) != n || each > 256 {
		t.Errorf("%d open executions of %d bytes each, want %d of at most 256", len(w.open), each, n)
	}
}

func TestPauses(t *testing.T) {
	t.Parallel()
	p := &executionv1.RetryPolicy{Backoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(10 * time.Second)}
	for attempt, most := range map[uint32]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 100: 10 * time.Second} {
		id := newID(t)
		got := pause(p, id, attempt)
		if got > most || got < most/2 {
			t.Errorf("after attempt %d: %s, want %s to %s", attempt, got, most/2, most)
		}
		if again := pause(p, id, attempt); again != got {
			t.Errorf("after attempt %d: %s, then %s", attempt, got, again)
		}
	}
	if got := pause(nil, "x", 1); got > firstPause || got < firstPause/2 {
		t.Errorf("without a policy: %s", got)
	}
}
