package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
)

// maxLineBytes bounds one line of a tail. The largest fact is a request with 8 MiB of stdin: 11 MiB in base64.
const maxLineBytes = 32 << 20

var errEnd = errors.New("the tail came to its end")

// Events returns the archived facts of an execution in the order of the log. The error, if any, comes last.
func (c *Client) Events(ctx context.Context, id string) iter.Seq2[api.Fact, error] {
	return func(yield func(api.Fact, error) bool) {
		resp, err := c.send(ctx, request{method: http.MethodGet, path: executionPath(id) + "/events"})
		if err != nil {
			yield(api.Fact{}, err)
			return
		}
		defer resp.Body.Close()
		lines := json.NewDecoder(resp.Body)
		for {
			var f api.Fact
			if err := lines.Decode(&f); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				yield(api.Fact{}, fmt.Errorf("read events of execution %s: %w", id, err))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Tail returns every fact of an execution, from its first, as they happen, each once and in the order
// of the log, and ends when the execution's output is sealed. When the connection breaks it is made
// again, for as long as the context lives; only a server that never answered, or that refuses (no such
// execution, wrong token), ends the tail with an error.
func (c *Client) Tail(ctx context.Context, id string) iter.Seq2[api.Fact, error] {
	return func(yield func(api.Fact, error) bool) {
		t := &tail{client: c, id: id, last: -1, yield: yield}
		wait := backoff.NewExponentialBackOff()
		wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 5*time.Second
		told := false
		for {
			before := t.last
			err := t.follow(ctx)
			switch {
			case errors.Is(err, errEnd):
				return
			case ctx.Err() != nil:
				yield(api.Fact{}, context.Cause(ctx))
				return
			case !t.again(err):
				yield(api.Fact{}, err)
				return
			}
			if t.last != before {
				wait.Reset()
				told = false
			}
			if c.o.OnInterrupted != nil && !told {
				told = true
				c.o.OnInterrupted(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait.NextBackOff()):
			}
		}
	}
}

type tail struct {
	client   *Client
	id       string
	last     int64
	answered bool
	seen     execution.Seen
	yield    func(api.Fact, error) bool
}

// again tells whether to connect anew after err.
func (t *tail) again(err error) bool {
	var u *UnreachableError
	if errors.As(err, &u) {
		return t.answered
	}
	var a *APIError
	if errors.As(err, &a) {
		return a.Status >= 500
	}
	return true
}

// follow reads one connection. It returns errEnd when the tail is over, also because the caller has enough.
func (t *tail) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := t.client.o.Silence
	watchdog := time.AfterFunc(silence, func() { cancel(fmt.Errorf("the server said nothing for %s", silence)) })
	defer watchdog.Stop()

	header := http.Header{"Accept": {"text/event-stream"}}
	if t.last >= 0 {
		header.Set(api.HeaderLastEventID, strconv.FormatInt(t.last, 10))
	}
	resp, err := t.client.send(ctx, request{method: http.MethodGet, path: executionPath(t.id) + "/tail", header: header})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	t.answered = true
	messages := sseReader{lines: bufio.NewReaderSize(resp.Body, 64<<10), heard: func() { watchdog.Reset(silence) }}
	for {
		m, err := messages.next()
		if err != nil {
			return err
		}
		watchdog.Stop() // The caller may take its time.
		if err := t.take(m); err != nil {
			return err
		}
		watchdog.Reset(silence)
	}
}

func (t *tail) take(m sseMessage) error {
	switch m.event {
	case api.TailEnd:
		return errEnd
	case api.TailShutdown:
		return errors.New("the server stops")
	case api.TailError:
		p := api.Problem{Status: http.StatusInternalServerError}
		if err := json.Unmarshal(m.data, &p); err != nil {
			return fmt.Errorf("read error of tail: %w", err)
		}
		return &APIError{Status: p.Status, Title: p.Title, Detail: p.Detail, Errors: p.Errors}
	}
	var f api.Fact
	if err := json.Unmarshal(m.data, &f); err != nil {
		return fmt.Errorf("read fact of tail: %w", err)
	}
	if f.Offset <= t.last {
		return nil
	}
	t.last = f.Offset
	// The server tells a producer's resend apart within one connection only.
	added, sure := t.seen.Add(events.Event{ID: f.ID, Source: f.Source, Type: f.Type, Subject: f.Subject, Attempt: f.Attempt, Sequence: f.Sequence})
	if sure && !added {
		return nil
	}
	if !t.yield(f, nil) {
		return errEnd
	}
	return nil
}

// sseReader reads server-sent events (HTML standard, section 9.2.6) with lines that end in LF or CRLF.
type sseReader struct {
	lines *bufio.Reader
	// heard is called for every line, comments included.
	heard func()
	buf   []byte
}

type sseMessage struct {
	event string
	data  []byte
}

func (r *sseReader) next() (sseMessage, error) {
	var m sseMessage
	for {
		line, err := r.line()
		if err != nil {
			return sseMessage{}, err
		}
		r.heard()
		if len(line) == 0 {
			if len(m.data) > 0 {
				return m, nil
			}
			m = sseMessage{}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			m.event = string(value)
		case "data":
			if m.data != nil {
				m.data = append(m.data, '\n')
			}
			m.data = append(m.data, value...)
			if len(m.data) > maxLineBytes {
				return sseMessage{}, fmt.Errorf("read tail: a message is longer than %d bytes", maxLineBytes)
			}
		}
	}
}

// line returns the next line without its end; it is good until the next call.
func (r *sseReader) line() ([]byte, error) {
	r.buf = r.buf[:0]
	for {
		part, err := r.lines.ReadSlice('\n')
		r.buf = append(r.buf, part...)
		if err == nil {
			return bytes.TrimRight(r.buf, "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("read tail: %w", err)
		}
		if len(r.buf) > maxLineBytes {
			return nil, fmt.Errorf("read tail: a line is longer than %d bytes", maxLineBytes)
		}
	}
}
