package storetest

import (
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

// Open are the executions that are not sealed or that another attempt follows, from a day on.
func TestOpenExecutions(t *testing.T) {
	t.Parallel()
	s := open(t)
	running, sealed, retrying, old := factsOf(t, idAt(testTime, 1)), factsOf(t, idAt(testTime, 2)), factsOf(t, idAt(testTime, 3)), factsOf(t, idAt(testTime.Add(-48*time.Hour), 4))
	for _, f := range []*facts{running, sealed, retrying, old} {
		f.say(0, &executionv1.ExecutionRequested{Retry: &executionv1.RetryPolicy{Retries: 1, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_FAILED}}})
		f.say(1, &executionv1.Prepared{Argv: []string{"x"}})
		f.say(1, &executionv1.ProcessStarted{Runner: "r1"})
	}
	sealed.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}})
	retrying.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 1}})
	retrying.say(1, &executionv1.RetryScheduled{NextAttempt: 2, NotBefore: timestamppb.New(testTime)})
	var states []*execution.State
	for _, f := range []*facts{running, sealed, retrying, old} {
		if f == sealed || f == retrying {
			f.say(1, &executionv1.OutputSealed{})
		}
		states = append(states, f.state())
	}
	must(t, s.InsertRows(t.Context(), states))
	got := map[string]clickhouse.OpenExecution{}
	for _, o := range collect(t, s.OpenExecutions(t.Context(), testTime)) {
		got[o.ExecutionID] = o
	}
	if ids := slices.Sorted(maps.Keys(got)); !slices.Equal(ids, []string{running.id, retrying.id}) {
		t.Fatalf("open are %v", ids)
	}
	if o := got[running.id]; o.Attempt != 1 || o.Status != execution.StatusRunning || o.Runner != "r1" || o.PreparedAt == nil || o.RetryAt != nil {
		t.Errorf("%+v", o)
	}
	if o := got[retrying.id]; o.Status != execution.StatusRetrying || o.RetryAt == nil || !o.RetryAt.Equal(testTime) {
		t.Errorf("%+v", o)
	}
}

// What runs for long, or ended a short while ago after it did, is open however old it is. What never had a process is not.
func TestLongOpenExecutions(t *testing.T) {
	t.Parallel()
	s := open(t)
	before := testTime.Add(-9 * 24 * time.Hour)
	running, exited, forgotten, sealed, refused := factsOf(t, idAt(before, 1)), factsOf(t, idAt(before, 2)), factsOf(t, idAt(before, 3)), factsOf(t, idAt(before, 4)), factsOf(t, idAt(before, 5))
	retrying, recent := factsOf(t, idAt(before, 6)), factsOf(t, idAt(testTime, 7))
	all := []*facts{running, exited, forgotten, sealed, refused, retrying, recent}
	insert := func() {
		var states []*execution.State
		for _, f := range all {
			states = append(states, f.state())
		}
		must(t, s.InsertRows(t.Context(), states))
	}
	for _, f := range all {
		f.say(0, &executionv1.ExecutionRequested{Retry: &executionv1.RetryPolicy{Retries: 1, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_LOST}}})
		if f != refused {
			f.say(1, &executionv1.ProcessStarted{Runner: "r1"})
		}
	}
	insert() // An older version of each, in a part of its own.
	exit := func(f *facts, at time.Time) {
		f.say(1, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 1}, EndedAt: timestamppb.New(at)})
	}
	exit(exited, testTime)
	exit(forgotten, before)
	exit(sealed, testTime)
	sealed.say(1, &executionv1.OutputSealed{})
	refused.say(1, &executionv1.PreparationFailed{})
	retrying.say(1, &executionv1.RunnerLost{Runner: "r1"})
	insert()
	got := map[string]string{}
	for _, o := range collect(t, s.LongOpenExecutions(t.Context(), testTime.Add(-7*24*time.Hour))) {
		got[o.ExecutionID] = o.Status
	}
	want := map[string]string{running.id: execution.StatusRunning, exited.id: execution.StatusFailed, retrying.id: execution.StatusRetrying}
	if !maps.Equal(got, want) {
		t.Errorf("open for long are %v, want %v", got, want)
	}
}

// Stories have everything but the output, and know how far the output's numbers go. They are read in parts that fit into memory.
func TestStories(t *testing.T) {
	t.Parallel()
	s := open(t)
	var ids []string
	for i := range 34 {
		f := factsOf(t, idAt(testTime, i))
		ids = append(ids, f.id)
		archived := []clickhouse.ArchivedEvent{f.say(1, &executionv1.Prepared{Argv: []string{"x"}, Stdin: make([]byte, 1<<20)})}
		for n := range 5 {
			archived = append(archived, f.chunk(1, executionv1.Stream_STREAM_STDOUT, uint64(n), []byte{byte(n)}))
		}
		for n := range archived {
			archived[n].Offset = int64(1000*i + n)
		}
		must(t, s.InsertEvents(t.Context(), archived))
	}
	told := 0
	for story, err := range s.Stories(t.Context(), append(ids, idAt(testTime, 999))) {
		must(t, err)
		told++
		if len(story.Facts) != 1 || story.Facts[0].Event.Type != events.TypePrepared || story.Facts[0].Event.Subject != story.ExecutionID {
			t.Fatalf("%d facts of %s", len(story.Facts), story.ExecutionID)
		}
		if last := story.Last[1]; len(last) != 1 || slices.Collect(maps.Values(last))[0] != 6 {
			t.Fatalf("the numbers go to %v", last)
		}
	}
	if told != len(ids) {
		t.Errorf("%d stories of %d executions", told, len(ids))
	}
}
