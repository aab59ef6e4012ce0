package cli

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

func fact(t *testing.T, attempt uint32, data proto.Message) api.Fact {
	t.Helper()
	typ, err := events.TypeOf(data)
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return api.Fact{Type: typ, Name: api.NameOf(typ), Attempt: attempt, Data: text}
}

func out(offset uint64, text string) *executionv1.OutputChunk {
	return &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: offset, Data: []byte(text)}
}

func seal(stdout uint64) *executionv1.OutputSealed {
	return &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
		{Stream: executionv1.Stream_STREAM_STDOUT, CapturedBytes: stdout, PublishedBytes: stdout},
		{Stream: executionv1.Stream_STREAM_STDERR},
	}}
}

func follow(t *testing.T, only string, facts ...api.Fact) (stdout, stderr string, f follower) {
	t.Helper()
	var o, e bytes.Buffer
	f = follower{stdout: &o, stderr: &e, only: only}
	for _, fact := range facts {
		if err := f.take(fact); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.finish(); err != nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), f
}

func TestOutputIsWrittenOnceAndInItsOrder(t *testing.T) {
	t.Parallel()
	facts := []api.Fact{
		fact(t, 1, out(0, "ab")), fact(t, 1, out(2, "cd")), fact(t, 1, out(4, "ef")), fact(t, 1, out(3, "def")),
		fact(t, 1, &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDERR, Data: []byte("err")}),
		fact(t, 1, &executionv1.OutputChunk{Stream: 77, Data: []byte("a stream of the future")}),
		fact(t, 1, seal(6)), fact(t, 1, seal(6)),
	}
	facts = append(facts, facts...)
	for range 200 {
		shuffled := slices.Clone(facts)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		stdout, stderr, f := follow(t, "", shuffled...)
		if stdout != "abcdef" || stderr != "err" || len(f.gaps) != 0 {
			t.Fatalf("%q, %q, gaps %v", stdout, stderr, f.gaps)
		}
	}
	stdout, stderr, _ := follow(t, "stderr", facts...)
	if stdout != "" || stderr != "err" {
		t.Errorf("only stderr: %q, %q", stdout, stderr)
	}
}

func TestMissingBytesAreSaid(t *testing.T) {
	t.Parallel()
	stdout, _, f := follow(t, "", fact(t, 1, out(0, "ab")), fact(t, 1, out(5, "fg")), fact(t, 1, seal(10)))
	var says strings.Builder
	f.warn(&says)
	if want := "verbatim: stdout bytes 2 to 5 are missing\nverbatim: stdout bytes 7 to 10 are missing\n"; stdout != "abfg" || says.String() != want {
		t.Errorf("%q, %s", stdout, says.String())
	}
	if _, _, f = follow(t, "stderr", fact(t, 1, out(5, "fg")), fact(t, 1, seal(10))); len(f.gaps) != 0 {
		t.Errorf("gaps of a stream that nobody asked for: %v", f.gaps)
	}
}

// What waits for bytes that never come must not fill the memory.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	var o bytes.Buffer
	f := follower{stdout: &o}
	data := strings.Repeat("x", events.MaxChunkBytes)
	for i := range uint64(2*maxWaitingBytes/events.MaxChunkBytes + 2) {
		if err := f.chunk(out(1+i*events.MaxChunkBytes, data)); err != nil {
			t.Fatal(err)
		}
		for _, p := range f.streams {
			if p.waitingBytes > maxWaitingBytes {
				t.Fatalf("%d bytes wait", p.waitingBytes)
			}
		}
	}
	if len(f.gaps) != 1 || f.gaps[0] != (gap{"stdout", 0, 1}) || o.Len() < maxWaitingBytes {
		t.Errorf("gaps %v, %d bytes written", f.gaps, o.Len())
	}
}

func TestALaterAttemptCountsAlone(t *testing.T) {
	t.Parallel()
	exit := func(code int32) *executionv1.ProcessExited {
		return &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: code}}
	}
	stdout, _, f := follow(t, "", fact(t, 1, out(0, "first ")), fact(t, 1, exit(3)), fact(t, 1, seal(6)),
		fact(t, 2, out(0, "second")), fact(t, 2, exit(0)), fact(t, 2, seal(6)))
	if err := f.result(&bytes.Buffer{}); stdout != "first second" || err != nil {
		t.Errorf("%q, %v", stdout, err)
	}
}

func TestHowItEndedIsTheExitCode(t *testing.T) {
	t.Parallel()
	timeout := &executionv1.TerminationStarted{Cause: executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT}
	cancel := &executionv1.TerminationStarted{Cause: executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL}
	killed := &executionv1.ProcessExited{Status: &executionv1.ProcessExited_Signal{Signal: &executionv1.Signal{Number: 15, Name: "TERM"}}}
	start := func(r executionv1.StartFailureReason) *executionv1.StartFailed {
		return &executionv1.StartFailed{Reason: r, Message: "m"}
	}
	const notFound, notExecutable = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND, executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_EXECUTABLE
	for name, c := range map[string]struct {
		facts []proto.Message
		code  int // 125 stands for an error with a text
	}{
		"exit 0":            {[]proto.Message{&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}}}, 0},
		"exit 7":            {[]proto.Message{&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 7}}}, 7},
		"signal":            {[]proto.Message{killed}, 143},
		"timeout":           {[]proto.Message{timeout, killed}, 124},
		"timeout, exit 0":   {[]proto.Message{timeout, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}}}, 124},
		"cancel":            {[]proto.Message{cancel, timeout, killed}, 143},
		"not found":         {[]proto.Message{start(notFound)}, 127},
		"not executable":    {[]proto.Message{start(notExecutable)}, 126},
		"directory":         {[]proto.Message{start(executionv1.StartFailureReason_START_FAILURE_REASON_DIRECTORY)}, 125},
		"not prepared":      {[]proto.Message{&executionv1.PreparationFailed{Message: "m"}}, 125},
		"wait failed":       {[]proto.Message{&executionv1.WaitFailed{Cause: "c"}}, 125},
		"lost":              {[]proto.Message{&executionv1.RunnerLost{Runner: "r"}}, 125},
		"lost and back":     {[]proto.Message{&executionv1.RunnerLost{Runner: "r"}, &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: 1}}}, 1},
		"nothing was said":  {nil, 125},
		"a newer exit form": {[]proto.Message{&executionv1.ProcessExited{}}, 0},
	} {
		var facts []api.Fact
		for _, p := range c.facts {
			facts = append(facts, fact(t, 1, p))
		}
		_, _, f := follow(t, "", facts...)
		got := 0
		if err := f.result(&bytes.Buffer{}); err != nil {
			var code exitCode
			if got = exitVerbatim; errors.As(err, &code) {
				got = int(code)
			}
		}
		if got != c.code {
			t.Errorf("%s: exit code %d, want %d", name, got, c.code)
		}
	}
}

func TestWhatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	f := follower{stdout: closed{}}
	if err := f.take(fact(t, 1, out(0, "x"))); err == nil || !strings.Contains(err.Error(), "write stdout") {
		t.Errorf("got %v", err)
	}
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, fmt.Errorf("closed") }

// What lies behind left out bytes is written when the seal says so, in any order of the facts, and what is left out is no gap.
func TestElidedBytesAreNotMissing(t *testing.T) {
	t.Parallel()
	sealed := seal(100)
	sealed.Streams[0].Elided = []*executionv1.ByteRange{{Start: 3, End: 95}}
	facts := []api.Fact{fact(t, 1, out(0, "abc")), fact(t, 1, out(95, "wx")), fact(t, 1, out(97, "yz")), fact(t, 1, sealed)}
	for range 50 {
		rand.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
		stdout, _, f := follow(t, "", facts...)
		if want := []gap{{"stdout", 99, 100}}; stdout != "abcwxyz" || !slices.Equal(f.gaps, want) {
			t.Fatalf("%q, gaps %v", stdout, f.gaps)
		}
		var said bytes.Buffer
		f.warn(&said)
		if got := said.String(); got != "verbatim: stdout: 92 bytes were left out, 3 to 95 (run --output-limit none keeps all)\nverbatim: stdout bytes 99 to 100 are missing\n" {
			t.Fatalf("%s", got)
		}
	}
	if _, _, f := follow(t, "stderr", facts...); len(f.leftOut) != 0 || len(f.gaps) != 0 {
		t.Errorf("only stderr: %v %v", f.leftOut, f.gaps)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"1": 1, "500": 500, "64K": 64 << 10, "64KiB": 64 << 10, "10MiB": 10 << 20, "10M": 10 << 20, "2G": 2 << 30, "1T": 1 << 40, "7B": 7, "3kb": 3 << 10, "none": -1,
	} {
		var l outputLimit
		if err := l.UnmarshalText([]byte(text)); err != nil || l.request() != want {
			t.Errorf("%s: %d, %v", text, l.request(), err)
		}
	}
	for _, text := range []string{"", "0", "-1", "x", "1.5M", "M", "10 M", "1KK", "99999999999T", "None"} {
		var l outputLimit
		if err := l.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %d", text, l.request())
		}
	}
}

// Bytes that came late are sealed once more, with everything that was left out before.
func TestLateOutput(t *testing.T) {
	t.Parallel()
	first, last := seal(10), seal(20)
	first.Streams[0].Elided = []*executionv1.ByteRange{{Start: 2, End: 8}}
	last.Streams[0].Elided = []*executionv1.ByteRange{{Start: 2, End: 8}, {Start: 12, End: 18}}
	facts := []api.Fact{
		fact(t, 1, out(0, "ab")), fact(t, 1, out(8, "cd")), fact(t, 1, first),
		fact(t, 1, out(10, "ef")), fact(t, 1, out(18, "gh")), fact(t, 1, last),
	}
	for range 100 {
		stdout, _, f := follow(t, "", facts...)
		if want := []gap{{"stdout", 2, 8}, {"stdout", 12, 18}}; stdout != "abcdefgh" || len(f.gaps) != 0 || !slices.Equal(f.leftOut, want) {
			t.Fatalf("%q, gaps %v, left out %v", stdout, f.gaps, f.leftOut)
		}
		rand.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
	}
}

func TestRetryFlags(t *testing.T) {
	t.Parallel()
	second := time.Second
	for want, c := range map[string]runCommand{
		"<nil> <nil>":                                        {},
		"&{2 [failed timeout]  } <nil>":                      {Retries: 2},
		"&{1 [lost] 1s 1s} <nil>":                            {Retries: 1, RetryOn: []string{"lost"}, RetryBackoff: &second, RetryMaxBackoff: &second},
		"<nil> --retries is 101, it is from 0 to 100":        {Retries: 101},
		"<nil> --retry-on and the backoffs need --retries N": {RetryBackoff: &second},
	} {
		r, err := c.retry()
		if got := fmt.Sprint(r, err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
