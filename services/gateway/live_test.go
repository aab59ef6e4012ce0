package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/gateway/api"
)

// stream is an open tail.
type stream struct {
	t     *testing.T
	resp  *http.Response
	lines *bufio.Scanner
}

func (s *server) tail(t *testing.T, id string, header ...string) *stream {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/executions/"+id+"/tail", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 8<<20)
	return &stream{t, resp, lines}
}

// next returns the next event's id, name and data; all empty at the end of the stream.
func (s *stream) next() (id, name, data string) {
	s.t.Helper()
	for s.lines.Scan() {
		field, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch {
		case field == "id":
			id = value
		case field == "event":
			name = value
		case field == "data":
			data = value
		case s.lines.Text() == "" && name != "":
			return id, name, data
		}
	}
	return "", "", ""
}

// names returns the names of all events to the end of the stream.
func (s *stream) names() string {
	s.t.Helper()
	var out []string
	for {
		_, name, _ := s.next()
		if name == "" {
			return strings.Join(out, " ")
		}
		out = append(out, name)
	}
}

func TestATailTellsEverythingAndEnds(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested())
	s.store()
	live := s.tail(t, story.id)
	for i := range 3 {
		s.append(story.out(i, "x"))
		if i == 0 {
			if id, name, _ := live.next(); id != "0" || name != "ExecutionRequested" {
				t.Errorf("first is %s %s", id, name)
			}
		}
		id, name, data := live.next()
		var f api.Fact
		if err := json.Unmarshal([]byte(data), &f); err != nil || id != fmt.Sprint(i+1) || name != "OutputChunk" || f.Sequence != uint64(i+1) {
			t.Errorf("%s %s %s: %v", id, name, data, err)
		}
	}
	s.append(story.exited(0), story.sealed(3))
	if got := live.names(); got != "ProcessExited OutputSealed end" {
		t.Error(got)
	}
	// Ended, not all of it archived.
	all := "ExecutionRequested OutputChunk OutputChunk OutputChunk ProcessExited OutputSealed end"
	if got := s.tail(t, story.id).names(); got != all {
		t.Error(got)
	}
	// Long ended, and no broker.
	s.store()
	s.change(func() { s.kafkaAway = context.DeadlineExceeded })
	if got := s.tail(t, story.id).names(); got != all {
		t.Error(got)
	}
	s.change(func() { s.kafkaAway = nil })
	if got := s.tail(t, story.id, "Last-Event-ID", "3").names(); got != "ProcessExited OutputSealed end" {
		t.Error(got)
	}
	if got := s.tail(t, story.id, "Last-Event-ID", "5").names(); got != "end" {
		t.Error(got)
	}
	s.do("GET", "/v1/executions/"+story.id+"/tail", nil, "Last-Event-ID", "x").problem(t, http.StatusUnprocessableEntity)
	s.do("GET", "/v1/executions/"+story.id+"/tail?after=-5", nil).problem(t, http.StatusUnprocessableEntity)
	if a := s.do("HEAD", "/v1/executions/"+story.id+"/tail", nil); a.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %d", a.StatusCode)
	}
}

func TestWhatWasJustAcceptedCanBeFollowed(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	if a := s.do("POST", "/v1/executions", command("true"), "Idempotency-Key", story.id); a.StatusCode != http.StatusAccepted {
		t.Fatal(a.StatusCode)
	}
	live := s.tail(t, story.id)
	s.append(story.requested(), story.started(), story.exited(0), story.sealed(0))
	if got := live.names(); got != "ExecutionRequested ProcessStarted ProcessExited OutputSealed end" {
		t.Error(got)
	}
}

func TestASilentTailLives(t *testing.T) {
	t.Parallel()
	s, story := start(t, func(c *gateway.Config) { c.Heartbeat = 10 * time.Millisecond }), newStory(t)
	s.append(story.requested())
	s.store()
	live := s.tail(t, story.id)
	beats := 0
	for beats < 3 && live.lines.Scan() {
		if live.lines.Text() == ": alive" {
			beats++
		}
	}
	if beats != 3 {
		t.Error("no sign of life")
	}
}

func TestStopTellsTheTails(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested())
	s.store()
	live := s.tail(t, story.id)
	if _, name, _ := live.next(); name != "ExecutionRequested" {
		t.Error(name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	if got := live.names(); got != "shutdown" {
		t.Error(got)
	}
}

func TestTailsAreBounded(t *testing.T) {
	t.Parallel()
	s, story := start(t, func(c *gateway.Config) { c.MaxTails = 2 }), newStory(t)
	s.append(story.requested())
	s.store()
	first := s.tail(t, story.id)
	s.tail(t, story.id)
	s.do("GET", "/v1/executions/"+story.id+"/tail", nil).problem(t, http.StatusServiceUnavailable, "2 tails")
	first.resp.Body.Close()
	deadline := time.Now().Add(60 * time.Second)
	for {
		r, err := http.Get(s.url + "/v1/executions/" + story.id + "/tail")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a closed tail's place is not given back")
		}
	}
}

// A client that does not read for a while holds nothing up, costs a bounded queue, and misses nothing.
func TestASlowReaderMissesNothing(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested())
	s.store()
	live := s.tail(t, story.id)
	if _, name, _ := live.next(); name != "ExecutionRequested" {
		t.Fatal(name)
	}
	const chunks = 2000 // Of 10 kB: more than socket buffers and queue hold together.
	data := strings.Repeat("x", 10_000)
	for i := range chunks {
		s.append(story.out(i*len(data), data))
	}
	s.append(story.sealed(chunks * uint64(len(data))))
	for i := range chunks {
		if id, name, _ := live.next(); name != "OutputChunk" || id != fmt.Sprint(i+1) {
			t.Fatalf("%s %s comes after %d", name, id, i)
		}
	}
	if got := live.names(); got != "OutputSealed end" {
		t.Error(got)
	}
}

func TestAForeignTypeCannotEndATail(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested())
	for _, typ := range []string{"end", "shutdown", "dev.verbatim.execution.end.v1", "x\nevent: end", "x\r\n\r\nevent: end"} {
		e := story.started()
		e.Type, e.Data, e.Payload = typ, nil, []byte("x")
		s.append(e)
	}
	s.append(story.sealed(0))
	s.store()
	if got := s.tail(t, story.id).names(); got != "ExecutionRequested Other Other Other Other Other OutputSealed end" {
		t.Error(got)
	}
}

func TestTheClientFollowsThroughEverything(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested())
	s.store()
	c, err := client.New(s.url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		for i := range 200 {
			s.append(story.out(i, "x"))
			if i%50 == 0 {
				s.store()
			}
		}
		s.append(story.exited(0), story.sealed(200))
	}()
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			last := int64(-1)
			for f, err := range c.Tail(t.Context(), story.id) {
				if err != nil {
					t.Error(err)
					return
				}
				if f.Offset != last+1 {
					t.Errorf("offset %d after %d", f.Offset, last)
				}
				last = f.Offset
			}
			if last != 202 {
				t.Errorf("the last fact is %d", last)
			}
		})
	}
	all.Wait()
}
