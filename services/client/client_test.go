package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "019366e0-7c00-7000-8000-0000000000ab"

// script is a server whose requests are answered one after the other.
type script struct {
	mu       sync.Mutex
	answers  []http.HandlerFunc
	requests []*http.Request
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, r)
	answer := s.answers[min(n, len(s.answers)-1)]
	s.mu.Unlock()
	answer(w, r)
}

func (s *script) seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func serve(t *testing.T, answers ...http.HandlerFunc) (*client.Client, *script) {
	t.Helper()
	s := &script{answers: answers}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	c, err := client.New(server.URL+"/", client.Options{Token: "a-token-of-16-characters"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, s
}

func refuse(status int, p api.Problem) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(p)
	}
}

func breakOff(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

func accept(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusAccepted)
	key := r.Header.Get(api.HeaderIdempotencyKey)
	_ = json.NewEncoder(w).Encode(api.SubmitResponse{ExecutionID: key, Links: api.LinksOf(key)})
}

func TestSubmitIsSentAgainUnderTheSameID(t *testing.T) {
	t.Parallel()
	c, s := serve(t, breakOff, refuse(http.StatusServiceUnavailable, api.Problem{Detail: "Kafka is away"}), accept)
	got, err := c.Submit(t.Context(), api.SubmitRequest{Command: &api.Command{Argv: []string{"true"}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.requests) != 3 {
		t.Errorf("%d requests", len(s.requests))
	}
	for _, r := range s.requests {
		if r.Header.Get(api.HeaderIdempotencyKey) != got.ExecutionID || r.Header.Get("Authorization") != "Bearer a-token-of-16-characters" {
			t.Errorf("headers %v, want id %s", r.Header, got.ExecutionID)
		}
	}
}

func TestAFaultyRequestIsSentOnce(t *testing.T) {
	t.Parallel()
	c, s := serve(t, refuse(http.StatusUnprocessableEntity, api.Problem{
		Title: "Unprocessable Entity", Detail: "the request cannot be accepted",
		Errors: []api.ProblemDetail{{Message: "is empty", Location: "body.command.argv"}, {Message: "is negative", Location: "body.timeout"}},
	}))
	_, err := c.Submit(t.Context(), api.SubmitRequest{})
	var a *client.APIError
	if !errors.As(err, &a) || a.Status != http.StatusUnprocessableEntity || len(a.Errors) != 2 {
		t.Fatalf("%#v", err)
	}
	if want := "the request cannot be accepted: is empty (body.command.argv); is negative (body.timeout)"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if len(s.requests) != 1 {
		t.Errorf("%d requests", len(s.requests))
	}
}

func TestNobodyThereIsSaidClearlyAndAtOnce(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := "http://" + l.Addr().String()
	l.Close()
	c, err := client.New(server, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := "no Verbatim server answers at " + server + ": start one with `verbatim up` or set VERBATIM_SERVER"
	_, submitErr := c.Submit(t.Context(), api.SubmitRequest{})
	_, getErr := c.Get(t.Context(), id)
	var tailErr error
	for _, tailErr = range c.Tail(t.Context(), id) {
		continue
	}
	_, readyErr := c.Ready(t.Context())
	for i, err := range []error{submitErr, getErr, tailErr, readyErr} {
		var u *client.UnreachableError
		if !errors.As(err, &u) || err.Error() != want {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestSomebodyElsesServerIsNotBelieved(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>nginx", http.StatusNotFound) })
	_, err := c.Get(t.Context(), id)
	if !client.NotFound(err) || !strings.Contains(err.Error(), "not as Verbatim does") {
		t.Error(err)
	}
	c, _ = serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	if _, err := c.Get(t.Context(), id); err == nil {
		t.Error("a page was taken for a row")
	}
}

func TestServersAreURLs(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"", "127.0.0.1:1", "ftp://x", "http://", "http://user:p4ss@host", "http://x?y=z", "http://[::1"} {
		if _, err := client.New(server, client.Options{}); err == nil || strings.Contains(err.Error(), "p4ss") {
			t.Errorf("%q: %v", server, err)
		}
	}
}

// facts writes a tail's events with these offsets.
func facts(w http.ResponseWriter, offsets ...int64) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "retry: 1000\r\n\r\n: alive\n\n")
	for _, o := range offsets {
		fact := api.Fact{ID: fmt.Sprintf("%s/1/runner/%d", id, o), Source: "/r", Subject: id, Attempt: 1, Sequence: uint64(o), Offset: o, Name: "OutputChunk"}
		data, _ := json.Marshal(fact)
		fmt.Fprintf(w, "id: %d\nevent: OutputChunk\ndata: %s\n\n", o, data)
	}
	_ = http.NewResponseController(w).Flush()
}

func tailed(ctx context.Context, c *client.Client) (offsets []int64, err error) {
	for f, err := range c.Tail(ctx, id) {
		if err != nil {
			return offsets, err
		}
		offsets = append(offsets, f.Offset)
	}
	return offsets, nil
}

func TestATailIsResumedAndTellsEachFactOnce(t *testing.T) {
	t.Parallel()
	c, s := serve(t,
		refuse(http.StatusServiceUnavailable, api.Problem{}),
		func(w http.ResponseWriter, _ *http.Request) { facts(w, 3, 4); panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "id: 5\nevent: OutputChunk\ndata: {\"offset\":5")
		}, // Cut in a fact.
		breakOff,
		func(w http.ResponseWriter, _ *http.Request) {
			facts(w, 3, 4, 5)
			fmt.Fprint(w, "event: shutdown\ndata: {}\n\n")
		},
		func(w http.ResponseWriter, _ *http.Request) { facts(w, 6); fmt.Fprint(w, "event: end\ndata: {}\n\n") },
	)
	got, err := tailed(t.Context(), c)
	if err != nil || !slices.Equal(got, []int64{3, 4, 5, 6}) {
		t.Errorf("%v: %v", got, err)
	}
	var resumed []string
	for _, r := range s.requests {
		resumed = append(resumed, r.Header.Get(api.HeaderLastEventID))
	}
	if !slices.Equal(resumed, []string{"", "", "4", "4", "4", "5"}) {
		t.Errorf("resumed after %q", resumed)
	}
}

func TestATailEndsWhenTheServerRefuses(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, refuse(http.StatusNotFound, api.Problem{Detail: "no execution " + id}))
	if _, err := tailed(t.Context(), c); !client.NotFound(err) {
		t.Error(err)
	}
	c, _ = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		facts(w, 1)
		fmt.Fprint(w, "event: error\ndata: {\"status\":410,\"detail\":\"gone\"}\n\n")
	})
	var a *client.APIError
	if got, err := tailed(t.Context(), c); !errors.As(err, &a) || a.Status != http.StatusGone || len(got) != 1 {
		t.Errorf("%v: %v", got, err)
	}
}

func TestATailEndsWithItsContextAndWithItsReader(t *testing.T) {
	t.Parallel()
	hang := func(w http.ResponseWriter, r *http.Request) { facts(w, 1, 2); <-r.Context().Done() }
	c, _ := serve(t, hang)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := tailed(ctx, c); !errors.Is(err, context.DeadlineExceeded) || len(got) != 2 {
		t.Errorf("%v: %v", got, err)
	}
	for range c.Tail(t.Context(), id) {
		break
	}
}

func TestASilentServerIsLeft(t *testing.T) {
	t.Parallel()
	s := &script{answers: []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) { facts(w, 1); <-r.Context().Done() },
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "event: end\ndata: {}\n\n") },
	}}
	server := httptest.NewServer(s)
	defer server.Close()
	c, err := client.New(server.URL, client.Options{Silence: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range c.Tail(t.Context(), id) {
		// A caller that takes its time is not the server's silence.
		select {
		case <-time.After(6 * time.Second):
		case <-t.Context().Done():
		}
		if n := len(s.seen()); n != 1 {
			t.Errorf("%d requests while the caller was busy", n)
		}
	}
	if r := s.seen(); len(r) != 2 || r[1].Header.Get(api.HeaderLastEventID) != "1" {
		t.Errorf("%d requests", len(r))
	}
}

func TestAnOutageIsToldOnce(t *testing.T) {
	t.Parallel()
	end := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "event: end\ndata: {}\n\n") }
	s := &script{answers: []http.HandlerFunc{
		breakOff, breakOff, refuse(http.StatusServiceUnavailable, api.Problem{}),
		func(w http.ResponseWriter, r *http.Request) { facts(w, 1); breakOff(w, r) }, breakOff, end,
	}}
	server := httptest.NewServer(s)
	defer server.Close()
	told := 0
	c, err := client.New(server.URL, client.Options{OnInterrupted: func(error) { told++ }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := tailed(t.Context(), c); err != nil || len(got) != 1 {
		t.Errorf("%v: %v", got, err)
	}
	if told != 2 { // One before the first fact, one after it.
		t.Errorf("told %d times", told)
	}
}

func TestAnEndlessLineIsNotHeld(t *testing.T) {
	t.Parallel()
	c, s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "data: ")
		for err := error(nil); err == nil; _, err = fmt.Fprint(w, strings.Repeat("x", 1<<20)) {
			continue
		}
	}, refuse(http.StatusNotFound, api.Problem{}))
	if _, err := tailed(t.Context(), c); !client.NotFound(err) || len(s.requests) != 2 {
		t.Errorf("%v after %d requests", err, len(s.requests))
	}
}

func TestAnOutputSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	c, s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set(api.HeaderAttempt, "2")
		h.Set(api.HeaderComplete, "false")
		h.Set(api.HeaderMissing, "10-20,30-31")
		h.Set(api.HeaderElided, "40-50")
		h.Set(api.HeaderStale, "recorder")
		h.Set("Trailer", api.HeaderMissingFound)
		w.WriteHeader(http.StatusOK)
		fmt.Fprint(w, "abc")
		h.Set(api.HeaderMissingFound, "60-61")
	}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "abc")
	})
	o, err := c.Output(t.Context(), id, "stdout", client.OutputOptions{Attempt: 2, Range: "bytes=0-5"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	body, err := io.ReadAll(o)
	if err != nil || string(body) != "abc" || o.Attempt != 2 || o.Complete == nil || *o.Complete || o.Stale != "recorder" || o.Partial ||
		!slices.Equal(o.Missing, []client.Range{{Start: 10, End: 20}, {Start: 30, End: 31}}) || !slices.Equal(o.Elided, []client.Range{{Start: 40, End: 50}}) {
		t.Errorf("%q %+v: %v", body, o, err)
	}
	if found, err := o.MissingFound(); err != nil || !slices.Equal(found, []client.Range{{Start: 60, End: 61}}) {
		t.Errorf("%v: %v", found, err)
	}
	if r := s.requests[0]; r.URL.RawQuery != "attempt=2" || r.Header.Get("Range") != "bytes=0-5" {
		t.Errorf("%s, %v", r.URL, r.Header)
	}
	short, err := c.Output(t.Context(), id, "stdout", client.OutputOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	if _, err := io.ReadAll(short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body that is cut short: %v", err)
	}
}

func TestListsAreReadPageByPage(t *testing.T) {
	t.Parallel()
	page := func(next string, ids ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"executions":[{"execution_id":%q}],"next":%q}`, strings.Join(ids, ""), next)
		}
	}
	c, s := serve(t, page("b", "b"), page("", "a"))
	var got []string
	for row, err := range c.All(t.Context(), client.ListOptions{Status: "failed", Since: "1h", Labels: map[string]string{"a": "b=c"}, Limit: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, row.ExecutionID)
	}
	if !slices.Equal(got, []string{"b", "a"}) || s.requests[1].URL.Query().Get("before") != "b" || s.requests[0].URL.Query().Get("label") != "a=b=c" {
		t.Errorf("%v, asked %v", got, s.requests[1].URL)
	}
}

// How long an answer may wait is said in whole seconds, and only if it was asked for.
func TestReadsSayHowLongTheyWait(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]string{0: "", time.Millisecond: "wait=1", 30 * time.Second: "wait=30", 1500 * time.Millisecond: "wait=2"} {
		var got string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.Header.Get("Prefer")
			w.WriteHeader(http.StatusNotFound)
		}))
		c, err := client.New(server.URL, client.Options{Wait: wait})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), id); !client.NotFound(err) {
			t.Error(err)
		}
		if got != want {
			t.Errorf("a wait of %s is %q, want %q", wait, got, want)
		}
		c.Close()
		server.Close()
	}
}
