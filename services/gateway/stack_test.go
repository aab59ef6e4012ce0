package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/client"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
	embeddedkafka "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/preparer"
	"verbatim.dev/services/recorder/watchdog"
	"verbatim.dev/services/runner"
)

// stack is everything for real: an embedded Kafka and ClickHouse, and every service.
type stack struct {
	t    *testing.T
	base wiring.Base
	dsn  string
	// artifacts, when set before the services start, says where they are kept.
	artifacts wiring.Artifacts
	kafka     *embeddedkafka.Server
	data      string
	client    *client.Client
	url       string
}

func (s *stack) startKafka(addr string) {
	s.t.Helper()
	var err error
	if s.kafka, err = embeddedkafka.Start(s.t.Context(), embeddedkafka.Config{Addr: addr, DataDir: s.data}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) stopKafka() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := s.kafka.Stop(ctx); err != nil {
		s.t.Error(err)
	}
}

// run starts a service and returns how to stop it.
func (s *stack) run(name string, service lifecycle.Service) (stop func()) {
	s.t.Helper()
	if err := service.Start(s.t.Context()); err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			if err := service.Stop(ctx); err != nil {
				s.t.Errorf("%s: %v", name, err)
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, dsn: clickhousetest.Database(t), data: t.TempDir()}
	s.startKafka("127.0.0.1:0")
	t.Cleanup(s.stopKafka)
	logger := slog.New(slog.DiscardHandler)
	s.base = wiring.Base{
		Kafka: kafka.Config{Brokers: []string{s.kafka.Addr()}, Logger: logger}, Logger: logger,
		Registry: prometheus.NewRegistry(), Checks: &telemetry.Checks{},
	}
	s.run("setup", wiring.Setup(s.base, s.dsn, clickhouse.Retention{}, nil))
	s.run("runner", wiring.Runner(s.base, runner.Config{ID: "r1", Host: "h", DataDir: t.TempDir(), Slots: 64, Logger: logger, Registry: s.base.Registry}))
	s.run("preparer", wiring.Preparer(s.base, preparer.Config{}))
	front := wiring.Gateway(s.base, gateway.Config{Addr: "127.0.0.1:0"}, s.dsn, s.artifacts)
	s.run("gateway", front)
	s.url = "http://" + front.Addr()
	var err error
	if s.client, err = client.New(s.url, client.Options{Wait: 50 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

func (s *stack) sinks() (stopRecorder func()) {
	s.run("projector", wiring.Projector(s.base, s.dsn, 100))
	return s.run("recorder", wiring.Recorder(s.base, s.dsn, watchdog.Config{}, s.artifacts))
}

func (s *stack) submit(argv ...string) string {
	s.t.Helper()
	r, err := s.client.Submit(s.t.Context(), api.SubmitRequest{Command: &api.Command{Argv: argv}, Labels: map[string]string{"team": "x"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ExecutionID
}

// follow returns the facts of a whole tail and the stdout in them.
func (s *stack) follow(id string) (facts []api.Fact, stdout []byte) {
	for f, err := range s.client.Tail(s.t.Context(), id) {
		if err != nil {
			s.t.Errorf("tail of %s: %v", id, err)
			return facts, stdout
		}
		facts = append(facts, f)
		p, err := f.Payload()
		if err != nil {
			s.t.Error(err)
		}
		if chunk, ok := p.(*executionv1.OutputChunk); ok && events.StreamName(chunk.GetStream()) == "stdout" {
			stdout = append(stdout, chunk.GetData()...)
		}
	}
	return facts, stdout
}

func (s *stack) output(id, byteRange string) []byte {
	s.t.Helper()
	o, err := s.client.Output(s.t.Context(), id, "stdout", client.OutputOptions{Range: byteRange})
	if err != nil {
		s.t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(o)
	if err != nil || o.Stale != "" {
		s.t.Errorf("output of %s: %v, stale %q", id, err, o.Stale)
	}
	return b
}

func names(facts []api.Fact) string {
	var out []string
	for _, f := range facts {
		out = append(out, f.Name)
	}
	return strings.Join(out, " ")
}

func TestOneExecutionForReal(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	id := s.submit("sh", "-c", "head -c 3000000 /dev/urandom; echo oops >&2; exit 3")
	facts, stdout := s.follow(id)
	if len(stdout) != 3_000_000 || !strings.HasPrefix(names(facts), "ExecutionRequested Prepared ProcessStarted OutputChunk") || facts[len(facts)-1].Name != "OutputSealed" {
		t.Errorf("%d bytes, %s", len(stdout), names(facts))
	}
	// Nothing below waits: what was followed to its end is there for every reader.
	row, err := s.client.Get(t.Context(), id)
	if err != nil || row.Status != execution.StatusFailed || *row.ExitCode != 3 || !*row.Complete || *row.Error != "oops" || *row.StdoutSHA256 != fmt.Sprintf("%x", sha256.Sum256(stdout)) {
		t.Errorf("%s: %v", row.Raw, err)
	}
	if !bytes.Equal(s.output(id, ""), stdout) {
		t.Error("the output is not what was followed")
	}
	if !bytes.Equal(s.output(id, "bytes=1000000-2000000"), stdout[1000000:2000001]) || !bytes.Equal(s.output(id, "bytes=-100"), stdout[len(stdout)-100:]) {
		t.Error("a range of the output is wrong")
	}
	var archived []api.Fact
	for f, err := range s.client.Events(t.Context(), id) {
		if err != nil {
			t.Fatal(err)
		}
		archived = append(archived, f)
	}
	if names(archived) != names(facts) {
		t.Errorf("archived: %s\nfollowed: %s", names(archived), names(facts))
	}
	if again, _ := s.follow(id); names(again) != names(facts) {
		t.Errorf("again: %s", names(again))
	}
	list, err := s.client.List(t.Context(), client.ListOptions{Status: "failed", Since: "1h", Labels: map[string]string{"team": "x"}})
	if err != nil || len(list.Executions) != 1 || list.Executions[0].ExecutionID != id {
		t.Errorf("%+v: %v", list, err)
	}
	result, err := s.client.Query(t.Context(), "SELECT exit_code, complete, stdout_bytes FROM executions FINAL", "TSV", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	if text, err := io.ReadAll(result); err != nil || string(text) != "3\ttrue\t3000000\n" {
		t.Errorf("%q: %v", text, err)
	}
	var refused *client.APIError
	if _, err := s.client.Cancel(t.Context(), id, api.CancelRequest{}); !errors.As(err, &refused) || refused.Status != http.StatusConflict {
		t.Errorf("cancel of an ended execution: %v", err)
	}
	if h, err := s.client.Ready(t.Context()); err != nil || !h.Ready {
		t.Errorf("%+v: %v", h, err)
	}
}

func TestTheDatabaseIsOnlyRead(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	for sql, says := range map[string]string{
		"SELECT 1 SETTINGS readonly = 0":           "READONLY",
		"SELECT 1 SETTINGS max_execution_time = 0": "READONLY",
		"SELECT * FROM nope":                       "Code: 60",
		"SELEC":                                    "only SELECT",
		"SELECT 1 +":                               "Code: 62",
		"WITH x AS (SELECT 1) INSERT INTO executions SELECT":  "Code: ",
		"EXPLAIN DROP TABLE executions":                       "Code: ",
		"SELECT throwIf(number = 90000) FROM numbers(100000)": "Code: 395",
		"SELECT number FROM numbers(1000000000)":              "Code: 396",
	} {
		result, err := s.client.Query(t.Context(), sql, "TSV", nil)
		if err == nil {
			text, _ := io.ReadAll(io.LimitReader(result, 200))
			result.Close()
			t.Errorf("%s: %q", sql, text)
			continue
		}
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v does not speak of %q", sql, err, says)
		}
	}
}

func TestACancelEndsAProcess(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	// It outlives the first cancel, so that there is a second one.
	enough := t.TempDir() + "/enough"
	accepted, err := s.client.Submit(t.Context(), api.SubmitRequest{
		Command: &api.Command{Argv: []string{"sh", "-c", "trap '' TERM; echo begun; while [ ! -e " + enough + " ]; do sleep 0.05; done"}}, Grace: "60s",
	})
	if err != nil {
		t.Fatal(err)
	}
	id := accepted.ExecutionID
	go func() {
		for f, err := range s.client.Tail(t.Context(), id) {
			if err != nil || f.Name != "OutputChunk" {
				continue
			}
			for range 2 {
				if _, err := s.client.Cancel(t.Context(), id, api.CancelRequest{Reason: "enough", RequestedBy: "me"}); err != nil {
					t.Error(err)
				}
			}
			if err := os.WriteFile(enough, nil, 0o600); err != nil {
				t.Error(err)
			}
			return
		}
	}()
	_, stdout := s.follow(id)
	row, err := s.client.Get(t.Context(), id)
	if err != nil || row.Status != execution.StatusCancelled || string(stdout) != "begun\n" {
		t.Errorf("%q, %s: %v", stdout, row.Raw, err)
	}
}

func TestManyAtOnceAreAllReadAsOfNow(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			id := s.submit("sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%5))
			_, stdout := s.follow(id)
			row, err := s.client.Get(t.Context(), id)
			for err == nil && row.Stale != "" && t.Context().Err() == nil {
				// On a machine that is busy elsewhere a read may wait in vain; then it says so.
				row, err = s.client.Get(t.Context(), id)
			}
			if err != nil || row.ExitCode == nil || *row.ExitCode != int32(i%5) || row.Complete == nil || !*row.Complete {
				t.Errorf("%s, stale %q: %v", row.Raw, row.Stale, err)
			}
			if want := fmt.Sprintln(i); string(stdout) != want || string(s.output(id, "")) != want {
				t.Errorf("%s: followed %q", id, stdout)
			}
		})
	}
	all.Wait()
}

// Nothing is archived and no row is written, and still a tail tells everything.
func TestATailNeedsNoSink(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	id := s.submit("sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.15; done")
	facts, stdout := s.follow(id)
	if string(stdout) != "1\n2\n3\n4\n5\n" || facts[len(facts)-1].Name != "OutputSealed" {
		t.Errorf("%q, %s", stdout, names(facts))
	}
	impatient, err := client.New(s.url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	row, err := impatient.Get(t.Context(), id)
	if err != nil || row.Status != execution.StatusRequested || row.Stale != "projector" {
		t.Errorf("%s, stale %q: %v", row.Raw, row.Stale, err)
	}
	// They come up, and it is all there.
	s.sinks()
	deadline := time.Now().Add(90 * time.Second)
	for {
		if row, err = s.client.Get(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if row.Sealed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s", row.Raw)
		}
	}
	if got := s.output(id, ""); string(got) != "1\n2\n3\n4\n5\n" {
		t.Errorf("%q", got)
	}
}

// A request that Kafka did not acknowledge is refused in time, and sent again it runs once.
func TestARequestIsSentAgainAfterAnOutage(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	post := func() (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/executions", strings.NewReader(`{"command":{"argv":["echo","once"]}}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(api.HeaderIdempotencyKey, id)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	addr := s.kafka.Addr()
	s.stopKafka()
	begun := time.Now()
	if status, body := post(); status != http.StatusServiceUnavailable || time.Since(begun) > 30*time.Second || !strings.Contains(body, id) {
		t.Errorf("without a broker: %d %s after %s", status, body, time.Since(begun))
	}
	s.startKafka(addr)
	for range 2 {
		if status, body := post(); status != http.StatusAccepted {
			t.Fatalf("%d %s", status, body)
		}
	}
	if _, stdout := s.follow(id); string(stdout) != "once\n" {
		t.Errorf("%q", stdout)
	}
	row, err := s.client.Get(t.Context(), id)
	if err != nil || row.Facts["ProcessStarted"] != 1 || row.Facts["ExecutionRequested"] != 1 || len(row.Contradictions) != 0 {
		t.Errorf("%s: %v", row.Raw, err)
	}
}

// The broker goes away in the middle of tails and comes back: no fact is missed or told twice.
func TestTailsOutliveTheBroker(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sinks()
	id := s.submit("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $i; sleep 0.2; done")
	begun := make(chan struct{})
	var once sync.Once
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			var stdout []byte
			last := int64(-1)
			for f, err := range s.client.Tail(t.Context(), id) {
				if err != nil {
					t.Error(err)
					return
				}
				if f.Offset <= last {
					t.Errorf("offset %d after %d", f.Offset, last)
				}
				last = f.Offset
				p, _ := f.Payload()
				if chunk, ok := p.(*executionv1.OutputChunk); ok {
					once.Do(func() { close(begun) })
					stdout = append(stdout, chunk.GetData()...)
				}
			}
			if want := "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n19\n20\n"; string(stdout) != want {
				t.Errorf("followed %q", stdout)
			}
		})
	}
	<-begun
	addr := s.kafka.Addr()
	s.stopKafka()
	if h, err := s.client.Ready(t.Context()); err != nil || h.Ready {
		t.Errorf("ready without a broker: %+v, %v", h, err)
	}
	s.startKafka(addr)
	all.Wait()
}
