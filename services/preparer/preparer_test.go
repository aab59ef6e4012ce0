package preparer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/eventstest"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/preparer"
)

// log is a publisher that keeps what was published, and fails from a given call on.
type log struct {
	topics   []string
	messages []*message.Message
	calls    int
	failFrom int
	limit    int // No payload may have more bytes, when it is not 0.
}

func (l *log) PublishContext(_ context.Context, topic string, msgs ...*message.Message) error {
	if l.calls++; l.failFrom > 0 && l.calls >= l.failFrom {
		return errors.New("no broker")
	}
	for _, m := range msgs {
		if l.limit > 0 && len(m.Payload) > l.limit {
			return fmt.Errorf("%w: %d bytes", kafka.ErrTooLarge, len(m.Payload))
		}
	}
	for _, m := range msgs {
		l.topics, l.messages = append(l.topics, topic), append(l.messages, m)
	}
	return nil
}

var received = time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)

func handle(t *testing.T, l *log, m *message.Message) error {
	t.Helper()
	p := preparer.New(preparer.Config{}, l, func(*message.Message) time.Time { return received }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	return p.Handle(m)
}

func request(t *testing.T, r *executionv1.ExecutionRequested) *message.Message {
	t.Helper()
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(eventstest.ExecutionID, 0, 1, eventstest.Time, r)
	if err != nil {
		t.Fatal(err)
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		t.Fatal(err)
	}
	m.SetContext(t.Context())
	return m
}

func command(argv ...string) *executionv1.ExecutionRequested {
	return &executionv1.ExecutionRequested{What: &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: argv}}}
}

func TestARequestBecomesFactsAndThenWork(t *testing.T) {
	t.Parallel()
	var l log
	r := command("sh", "-c", "true")
	r.Timeout, r.Labels, r.Stdin = durationpb.New(time.Second), map[string]string{"b": "2", "a": "1"}, []byte{0, 255}
	asked := request(t, r)
	if err := handle(t, &l, asked); err != nil {
		t.Fatal(err)
	}
	if want := []string{events.TopicExecutions, events.TopicExecutions, events.TopicWork}; !slices.Equal(l.topics, want) {
		t.Fatalf("published to %v, want %v", l.topics, want)
	}
	if l.messages[0].UUID != asked.UUID || !slices.Equal(l.messages[0].Payload, asked.Payload) {
		t.Error("the request in the log of facts is not the one that was asked")
	}
	if l.messages[1].UUID != l.messages[2].UUID || l.messages[1].UUID != eventstest.ExecutionID+"/1/preparer/1" {
		t.Errorf("fact %s and work %s are not one event", l.messages[1].UUID, l.messages[2].UUID)
	}
	e, err := codec.FromMessage(l.messages[2])
	if err != nil {
		t.Fatal(err)
	}
	p := e.Data.(*executionv1.Prepared)
	if p.GetTimeout().AsDuration() != time.Second || string(p.GetStdin()) != "\x00\xff" || p.GetLabels()["a"] != "1" || !p.GetRequestedAt().AsTime().Equal(eventstest.Time) {
		t.Errorf("launch spec %v", p)
	}
}

// Whatever was published before a kill is published again, bit for bit.
func TestARedeliveryGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	r := command("true")
	r.Labels = map[string]string{}
	for _, k := range strings.Split("abcdefghijklmnop", "") {
		r.Labels[k] = k
	}
	var first, second log
	for _, l := range []*log{&first, &second} {
		if err := handle(t, l, request(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range first.messages {
		if a, b := first.messages[i], second.messages[i]; a.UUID != b.UUID || !slices.Equal(a.Payload, b.Payload) || a.Metadata["ce_time"] != b.Metadata["ce_time"] {
			t.Errorf("message %d differs between two deliveries", i)
		}
	}
}

func TestABrokerThatIsAwayIsNoReasonToDeadLetter(t *testing.T) {
	t.Parallel()
	for failFrom := 1; failFrom <= 2; failFrom++ {
		err := handle(t, &log{failFrom: failFrom}, request(t, command("true")))
		if err == nil || failure.IsPermanent(err) {
			t.Errorf("failing at call %d: %v", failFrom, err)
		}
	}
}

func TestWhatCannotBePreparedIsAFact(t *testing.T) {
	t.Parallel()
	with := func(change func(*executionv1.ExecutionRequested)) *executionv1.ExecutionRequested {
		r := command("true")
		change(r)
		return r
	}
	for says, r := range map[string]*executionv1.ExecutionRequested{
		"neither a command nor an action": {},
		`action "deploy" is not known`:    {What: &executionv1.ExecutionRequested_Action{Action: &executionv1.Action{Name: "deploy"}}},
		"empty":                           command(),
		"the command is empty":            command(""),
		"NUL":                             command("echo", "a\x00b"),
		"timeout":                         with(func(r *executionv1.ExecutionRequested) { r.Timeout = durationpb.New(-1) }),
		"grace":                           with(func(r *executionv1.ExecutionRequested) { r.Grace = durationpb.New(-1) }),
		"absolute":                        with(func(r *executionv1.ExecutionRequested) { r.GetCommand().Directory = "here" }),
		`"A=B"`: with(func(r *executionv1.ExecutionRequested) {
			r.GetCommand().Environment = map[string]string{"A=B": "c", "X=Y": "d"}
		}),
		"both stdin and an upload": with(func(r *executionv1.ExecutionRequested) {
			r.Stdin, r.StdinUpload = []byte("x"), &executionv1.StdinUpload{}
		}),
		"both secrets and stdin": with(func(r *executionv1.ExecutionRequested) {
			r.Secrets, r.StdinUpload = map[string][]byte{"A": []byte("age-encryption.org/v1\n")}, &executionv1.StdinUpload{}
		}),
		"secret A is no age file": with(func(r *executionv1.ExecutionRequested) { r.Secrets = map[string][]byte{"A": []byte("in clear")} }),
	} {
		var l log
		if err := handle(t, &l, request(t, r)); err != nil {
			t.Errorf("%s: %v", says, err)
			continue
		}
		if slices.Contains(l.topics, events.TopicWork) || len(l.messages) != 2 {
			t.Errorf("%s: published to %v", says, l.topics)
			continue
		}
		e, err := codec.FromMessage(l.messages[1])
		if err != nil {
			t.Fatal(err)
		}
		if failed, ok := e.Data.(*executionv1.PreparationFailed); !ok || !strings.Contains(failed.GetMessage(), says) {
			t.Errorf("%v does not say %q", e.Data, says)
		}
	}
}

// What does not fit into the log never will: the request is a dead letter, and that it failed is a fact.
func TestARequestThatIsTooLarge(t *testing.T) {
	t.Parallel()
	l := log{limit: 1000}
	if err := handle(t, &l, request(t, command("echo", strings.Repeat("x", 1000)))); !failure.IsPermanent(err) {
		t.Errorf("it is tried again after %v", err)
	}
	if len(l.messages) != 1 || l.topics[0] != events.TopicExecutions {
		t.Fatalf("published to %v", l.topics)
	}
	e, err := codec.FromMessage(l.messages[0])
	if err != nil {
		t.Fatal(err)
	}
	if failed, ok := e.Data.(*executionv1.PreparationFailed); !ok || !strings.Contains(failed.GetMessage(), "too large") || e.Attempt != 1 {
		t.Errorf("it is said that %v", e.Data)
	}
	away := log{limit: 1000, failFrom: 2}
	if err := handle(t, &away, request(t, command("echo", strings.Repeat("x", 1000)))); err == nil || failure.IsPermanent(err) {
		t.Errorf("a broker that is away meanwhile: %v", err)
	}
}

func TestWhatIsNoRequestIsPermanent(t *testing.T) {
	t.Parallel()
	garbage := message.NewMessage("x", []byte("garbage"))
	other, err := codec.ToMessage(eventstest.Samples()[2])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*message.Message{garbage, other} {
		var l log
		if err := handle(t, &l, m); !failure.IsPermanent(err) || len(l.messages) != 0 {
			t.Errorf("%v, %d messages", err, len(l.messages))
		}
	}
}

func TestSecretsAndUploadsAreHandedOnAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, r := range []*executionv1.ExecutionRequested{
		{Secrets: map[string][]byte{"A": []byte("age-encryption.org/v1\nfile")}},
		{StdinUpload: &executionv1.StdinUpload{Upload: eventstest.ExecutionID, StartOffset: 1, EndOffset: 2, SizeBytes: 3, Sha256: []byte("digest")}},
	} {
		r.What = command("true").GetWhat()
		var l log
		if err := handle(t, &l, request(t, r)); err != nil {
			t.Fatal(err)
		}
		e, err := codec.FromMessage(l.messages[2])
		if err != nil {
			t.Fatal(err)
		}
		p := e.Data.(*executionv1.Prepared)
		if string(p.GetSecrets()["A"]) != string(r.GetSecrets()["A"]) || !proto.Equal(p.GetStdinUpload(), r.GetStdinUpload()) {
			t.Errorf("launch spec %v", p)
		}
	}
}

// A broker that died before it acknowledged has a request twice, each with a time of its own. That is one request, and what becomes of it is the same.
// With a time that is far from the broker's, somebody's clock is wrong, and what counts is when the broker got it.
func TestTwoRecordsOfARequestGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		off  time.Duration
		same bool
	}{{time.Second, true}, {-time.Minute, true}, {time.Hour, false}, {-48 * time.Hour, false}} {
		l, at := &log{}, eventstest.Time.Add(c.off)
		p := preparer.New(preparer.Config{StartWithin: 24 * time.Hour}, l, func(*message.Message) time.Time { return at }, slog.New(slog.DiscardHandler))
		for range 2 {
			if err := p.Handle(request(t, command("true"))); err != nil {
				t.Fatal(err)
			}
			at = at.Add(7 * time.Second)
		}
		if len(l.messages) != 6 {
			t.Fatalf("%d messages", len(l.messages))
		}
		for i := range 3 {
			same := bytes.Equal(l.messages[i].Payload, l.messages[i+3].Payload) && maps.Equal(l.messages[i].Metadata, l.messages[i+3].Metadata)
			if want := c.same || i == 0; same != want { // The first is the request itself.
				t.Errorf("off by %s: message %d is the same: %v, want %v", c.off, i, same, want)
			}
		}
		e, err := codec.FromMessage(l.messages[1])
		if err != nil {
			t.Fatal(err)
		}
		want := eventstest.Time
		if !c.same {
			want = want.Add(c.off)
		}
		if by := e.Data.(*executionv1.Prepared).GetStartBy().AsTime(); !by.Equal(want.Add(24 * time.Hour)) {
			t.Errorf("off by %s: to be started by %s, want a day after %s", c.off, by, want)
		}
	}
}
