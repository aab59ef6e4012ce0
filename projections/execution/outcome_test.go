package execution

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// teller numbers facts as one runner does.
type teller struct {
	t    testing.TB
	next map[uint32]uint64
	all  []events.Event
}

func tell(t testing.TB) *teller { return &teller{t: t, next: map[uint32]uint64{}} }

func (s *teller) in(attempt uint32, data ...proto.Message) *teller {
	s.t.Helper()
	for _, d := range data {
		s.next[attempt]++
		e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}.Event(testID, attempt, s.next[attempt], testTime.Add(time.Duration(len(s.all))*time.Second), d)
		if err != nil {
			s.t.Fatal(err)
		}
		s.all = append(s.all, e)
	}
	return s
}

// Short forms of facts.
var (
	prepared = &executionv1.Prepared{Argv: []string{"x"}}
	started  = &executionv1.ProcessStarted{Pid: 7, Host: "h1", Runner: "r1"}
	noStdin  = &executionv1.StdinWriteFailed{AcceptedBytes: 10, OfferedBytes: 100, Cause: "broken pipe"}
	noWait   = &executionv1.WaitFailed{Cause: "no child processes", Errno: 10}
	noRunner = &executionv1.RunnerLost{Runner: "r1", SilentSince: timestamppb.New(testTime)}
	noSuch   = &executionv1.PreparationFailed{Reason: executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_UNKNOWN_ACTION, Message: `action "x" is not known`}
	sealed0  = seal(0, "", 0, "")
)

func exit(code int32) proto.Message {
	return &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: code}}
}

func killed(name string) proto.Message {
	return &executionv1.ProcessExited{Status: &executionv1.ProcessExited_Signal{Signal: &executionv1.Signal{Number: 9, Name: name}}}
}

func noStart(reason executionv1.StartFailureReason, message string) proto.Message {
	return &executionv1.StartFailed{Reason: reason, Message: message, Host: "h1", Runner: "r1"}
}

func terminated(cause executionv1.TerminationCause, signals ...string) proto.Message {
	d := &executionv1.TerminationStarted{Cause: cause, RequestedBy: "somebody", Message: "why"}
	for _, s := range signals {
		d.Signals = append(d.Signals, &executionv1.SentSignal{Signal: &executionv1.Signal{Name: s}, SentAt: timestamppb.New(testTime)})
	}
	return d
}

func out(offset int, data string) proto.Message {
	return &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(offset), Data: []byte(data)}
}

func errs(offset int, data string) proto.Message {
	return &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDERR, Offset: uint64(offset), Data: []byte(data)}
}

// seal is that of streams of which everything was published.
func seal(outBytes int, outText string, errBytes int, errText string) *executionv1.OutputSealed {
	one := func(s executionv1.Stream, n int, text string) *executionv1.StreamSeal {
		sum := sha256.Sum256([]byte(text))
		return &executionv1.StreamSeal{Stream: s, CapturedBytes: uint64(n), PublishedBytes: uint64(n), Sha256: sum[:], PublishedSha256: sum[:]}
	}
	return &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{one(1, outBytes, outText), one(2, errBytes, errText)}}
}

const (
	timeout  = executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT
	cancel   = executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL
	shutdown = executionv1.TerminationCause_TERMINATION_CAUSE_RUNNER_SHUTDOWN
	notFound = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND
)

// show is a value or "-" for not known.
func show[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 5000)
	cases := []struct {
		name  string
		facts []proto.Message
		// status succeeded exit signal reason source | error
		want string
	}{
		{"nothing", nil, "requested - - - - - | -"},
		{"prepared", []proto.Message{prepared}, "prepared - - - - - | -"},
		{"started", []proto.Message{prepared, started}, "running - - - - - | -"},
		{"only output", []proto.Message{out(0, "x")}, "running - - - - - | -"},
		{"being terminated", []proto.Message{started, terminated(timeout, "TERM")}, "running - - - - - | -"},
		{"exit 0", []proto.Message{started, exit(0)}, "succeeded true 0 - - - | -"},
		{"exit 0 with words on stderr", []proto.Message{errs(0, "warning"), exit(0)}, "succeeded true 0 - - - | -"},
		{"exit 0 with a broken stdin", []proto.Message{noStdin, exit(0)}, "succeeded true 0 - - - | -"},
		{"exit 3", []proto.Message{exit(3)}, "failed false 3 - exit_code exit | exited with code 3"},
		{"exit 3 with words", []proto.Message{errs(0, "one\ntwo\n\n"), exit(3)}, "failed false 3 - exit_code stderr | one\ntwo"},
		{"five lines", []proto.Message{errs(0, "1\n2\n3\n4\n5\n"), exit(1)}, "failed false 1 - exit_code stderr | 1\n2\n3\n4\n5"},
		{"six lines", []proto.Message{errs(0, "1\n2\n3\n4\n5\nlast \r\n \n\n"), exit(1)}, "failed false 1 - exit_code stderr | last"},
		{"blank words", []proto.Message{errs(0, " \n\t\n"), exit(1)}, "failed false 1 - exit_code exit | exited with code 1"},
		{"words that are no text", []proto.Message{errs(0, "a\xffb\xc3"), exit(1)}, "failed false 1 - exit_code stderr | a\uFFFDb\uFFFD"},
		{"long words", []proto.Message{errs(0, long), exit(1)}, "failed false 1 - exit_code stderr | " + long[:4093] + "…"},
		{"words with a hole", []proto.Message{errs(0, "first\n"), errs(100, "last words\n"), exit(1)}, "failed false 1 - exit_code stderr | …last words"},
		{"exit 3 with a broken stdin", []proto.Message{noStdin, errs(0, "words"), exit(3)}, "failed false 3 - exit_code stdin | stdin: broken pipe, 10 of 100 bytes accepted"},
		{"killed", []proto.Message{started, killed("KILL")}, "failed false - KILL signal signal | killed by signal KILL"},
		{"killed, SIG is cut", []proto.Message{killed("SIGSEGV")}, "failed false - SEGV signal signal | killed by signal SEGV"},
		{"killed for memory", []proto.Message{&executionv1.ProcessExited{
			Status: &executionv1.ProcessExited_Signal{Signal: &executionv1.Signal{Number: 9, Name: "KILL"}}, OutOfMemory: &executionv1.OutOfMemory{Kills: 1},
		}}, "failed false - KILL signal signal | killed by signal KILL, out of memory"},
		{"a signal without a name", []proto.Message{killed("")}, "failed false - 9 signal signal | killed by signal 9"},
		{"an unknown end", []proto.Message{&executionv1.ProcessExited{}}, "failed false - - unknown_status exit | ended with an unknown status"},
		{"wait failed", []proto.Message{started, errs(0, "words"), noWait}, "failed false - - wait_failed wait | wait: no child processes"},
		{"wait failed, then the exit is known", []proto.Message{noWait, exit(0)}, "succeeded true 0 - - - | -"},
		{"timeout", []proto.Message{terminated(timeout, "TERM"), killed("TERM")}, "timeout false - TERM timeout timeout | timed out, killed by signal TERM"},
		{"timeout, TERM was obeyed", []proto.Message{terminated(timeout, "TERM"), exit(0)}, "timeout false 0 - timeout timeout | timed out, exited with code 0"},
		{"timeout with words", []proto.Message{terminated(timeout), errs(0, "half done"), killed("KILL")}, "timeout false - KILL timeout stderr | half done"},
		{"timeout and wait failed", []proto.Message{terminated(timeout), noWait}, "timeout false - - timeout wait | wait: no child processes"},
		{"timeout, then cancel", []proto.Message{terminated(timeout), terminated(cancel), killed("KILL")}, "timeout false - KILL timeout timeout | timed out, killed by signal KILL"},
		{"cancel", []proto.Message{terminated(cancel), killed("TERM")}, "cancelled false - TERM cancel signal | cancelled, killed by signal TERM"},
		{"shutdown", []proto.Message{terminated(shutdown), exit(1)}, "failed false 1 - runner_shutdown exit | runner shut down, exited with code 1"},
		{"not prepared", []proto.Message{noSuch}, `failed false - - unknown_action prepare | action "x" is not known`},
		{"not started", []proto.Message{prepared, noStart(notFound, "command not found: x")}, "failed false - - command_not_found start | command not found: x"},
		{"not started, no reason", []proto.Message{noStart(0, "")}, "failed false - - start_failed start | the process could not be started"},
		{"not started, a reason from the future", []proto.Message{noStart(99, "new")}, "failed false - - start_failed start | new"},
		{"cancelled before the start", []proto.Message{noStart(5, "cancelled")}, "cancelled false - - cancel start | cancelled"},
		{"lost", []proto.Message{started, noRunner}, "lost - - - runner_lost runner | runner r1 silent since 2026-11-25T12:00:00Z"},
		{"lost and found", []proto.Message{started, noRunner, exit(3)}, "failed false 3 - exit_code exit | exited with code 3"},
		{"lost before the start, which failed", []proto.Message{noRunner, noStart(notFound, "x")}, "failed false - - command_not_found start | x"},
		{"it ran although nobody thinks so", []proto.Message{noStart(notFound, "x"), exit(0)}, "succeeded true 0 - - - | -"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := Fold(testID, tell(t).in(1, c.facts...).all)
			got := fmt.Sprintf("%s %s %s %s %s %s | %s", r.Status, show(r.Succeeded), show(r.ExitCode), show(r.Signal), show(r.Reason), show(r.ErrorSource), show(r.Error))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestLatestAttemptIsShownAndAllAreCounted(t *testing.T) {
	t.Parallel()
	r := Fold(testID, tell(t).in(1, prepared, started, out(0, "first"), exit(1)).in(2, prepared, started, out(0, "second")).in(1, noStdin).all)
	if *r.Attempt != 2 || r.Attempts != 2 || r.Status != StatusRunning || *r.Stdout != "second" || r.ExitCode != nil {
		t.Fatal(rowJSON(t, r))
	}
	if r.Facts["OutputChunk"] != 2 || r.Facts["ProcessExited"] != 1 || r.Version != 8 {
		t.Fatal(rowJSON(t, r))
	}
}

func TestIdentityAndTimes(t *testing.T) {
	t.Parallel()
	s := tell(t)
	s.in(0, &executionv1.ExecutionRequested{
		What:    &executionv1.ExecutionRequested_Action{Action: &executionv1.Action{Name: "deploy", ParametersJson: `{"secret":1}`}},
		Timeout: durationpb.New(90 * time.Second), Labels: map[string]string{"team": "x"}, RequestedBy: "me", Stdin: []byte("typed in"),
	})
	s.in(1, &executionv1.Prepared{Argv: []string{"sh", "-c", "x"}, Directory: "/srv", Environment: map[string]string{"TOKEN": "hidden"}, Action: "deploy", Timeout: durationpb.New(time.Minute)})
	s.in(1, &executionv1.ProcessStarted{Pid: 7, Host: "h1", Runner: "r1", ProcessStartedAt: timestamppb.New(testTime.Add(time.Hour))})
	s.in(1, terminated(cancel, "TERM"), terminated(cancel, "KILL"))
	s.in(1, &executionv1.ProcessExited{
		Status: &executionv1.ProcessExited_ExitCode{}, EndedAt: timestamppb.New(testTime.Add(time.Hour + 1500*time.Millisecond)), CoreDumped: true,
		Usage:       &executionv1.ResourceUsage{UserTime: durationpb.New(time.Second), SystemTime: durationpb.New(2 * time.Millisecond), MaxResidentBytes: 1024},
		OutOfMemory: &executionv1.OutOfMemory{Kills: 1},
	})
	r := Fold(testID, s.all)
	got := []any{
		*r.Action, r.Command, *r.Directory, *r.RequestedBy, r.Labels["team"], *r.TimeoutMS, *r.PID, *r.Host, *r.Runner, *r.DurationMS,
		*r.UserMS, *r.SystemMS, *r.MaxResidentBytes, *r.CoreDumped, *r.OutOfMemory, *r.Termination.Cause, *r.Termination.RequestedBy,
		r.Termination.Signals[0].Signal + r.Termination.Signals[1].Signal, r.RequestedAt.Equal(testTime), r.PreparedAt.Equal(testTime.Add(time.Second)),
	}
	want := []any{
		"deploy",
		[]string{"sh", "-c", "x"},
		"/srv", "me", "x", int64(60000), int64(7), "h1", "r1", int64(1500),
		int64(1000), int64(2), uint64(1024), true, true, "cancel", "somebody", "TERMKILL", true, true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	// What may hold a secret is in no row and no stored state.
	state := New(testID)
	for _, e := range s.all {
		state.Apply(e, time.Time{})
	}
	stored, err := state.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []string{"hidden", "TOKEN", "secret", "typed in"} {
		if strings.Contains(string(stored)+rowJSON(t, r), hidden) {
			t.Errorf("%q is kept", hidden)
		}
	}
}

// The producer's clock is what counts; the broker's stands in where it said nothing; no clock at all is nil.
func TestTimeOfTheBroker(t *testing.T) {
	t.Parallel()
	e := tell(t).in(1, prepared).all[0]
	for _, c := range []struct {
		said, received time.Time
		want           string
	}{
		{testTime, testTime.Add(time.Hour), "2026-11-25 12:00:00.123456789 +0000 UTC"},
		{time.Time{}, testTime.Add(time.Hour), "2026-11-25 13:00:00.123456789 +0000 UTC"},
		{time.Time{}, time.Time{}, "-"},
		{time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "-"},
	} {
		s := New(testID)
		e.Time = c.said
		s.Apply(e, c.received)
		if got := show(s.Row().PreparedAt); got != c.want {
			t.Errorf("said %v, received %v: %s, want %s", c.said, c.received, got, c.want)
		}
	}
}

// A fact without a time that reached the broker twice happened when it first did, in any order.
func TestTimeOfAResend(t *testing.T) {
	t.Parallel()
	e := tell(t).in(1, prepared).all[0]
	e.Time = time.Time{}
	for _, received := range [][]time.Time{{testTime, testTime.Add(time.Hour)}, {testTime.Add(time.Hour), testTime}, {{}, testTime}} {
		s := New(testID)
		for _, at := range received {
			s.Apply(e, at)
		}
		if got := s.Row().PreparedAt; got == nil || !got.Equal(testTime) {
			t.Errorf("received %v: %s", received, show(got))
		}
	}
}
