// Package client speaks to the gateway's HTTP API.
//
// Whatever is sent twice is safe to send twice: Submit chooses the execution's id itself and repeats the
// request when the connection breaks, and Tail resumes after the last fact it handed out, so that a caller sees every
// fact once however often the connection breaks. Nothing is held in memory as a whole: outputs,
// facts and query results are read as they come.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"verbatim.dev/services/gateway/api"
)

// Options of a client; the zero value is good.
type Options struct {
	// Token is sent as a bearer token when it is not empty.
	Token string
	// HTTP replaces the client's own *http.Client. It must not have a Timeout: tails last.
	HTTP *http.Client
	// UserAgent is sent with every request; empty: "verbatim".
	UserAgent string
	// Silence is how long a tail may say nothing before it counts as broken; 0 is 35 s: three of the
	// gateway's heartbeats and a bit.
	Silence time.Duration
	// Wait, if positive, is how long an answer may wait for the newest facts to be stored, rounded up to seconds; a minute
	// is the most. 0: as long as the server finds right.
	Wait time.Duration
	// Traceparent, if not empty, is the W3C trace context that requests are part of.
	Traceparent string
	// OnInterrupted, if not nil, is told why a tail broke that is made again: once for each time it stands still.
	OnInterrupted func(err error)
}

// Client is safe for concurrent use.
type Client struct {
	server *url.URL
	o      Options
}

// How long single steps may take. An answer to a read may wait 30 s for the recorder (the gateway's
// barrier), so headers get a minute.
const (
	dialTimeout   = 5 * time.Second
	headerTimeout = time.Minute
	// defaultSilence is Options.Silence.
	defaultSilence = 35 * time.Second
	// maxProblemBytes bounds what is read of an error's body.
	maxProblemBytes = 1 << 20
)

// New returns a client of the server at a URL like http://127.0.0.1:8080. It opens no connection.
func New(server string, o Options) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("server must be a URL like http://127.0.0.1:8080, without user, password or query")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if o.UserAgent == "" {
		o.UserAgent = "verbatim"
	}
	if o.Silence == 0 {
		o.Silence = defaultSilence
	}
	if o.HTTP == nil {
		t := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck // It is what the standard library documents.
		t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
		t.ResponseHeaderTimeout = headerTimeout + 2*o.Wait // A row and an archive may both be waited for.
		o.HTTP = &http.Client{Transport: t}
	}
	return &Client{server: u, o: o}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.o.HTTP.CloseIdleConnections() }

// APIError is an error that the server answered.
type APIError struct {
	// Status is the HTTP status.
	Status int
	Title  string
	Detail string
	// Errors names every single fault, when there are several.
	Errors []api.ProblemDetail
	// RetryAfter is how long the server asks to wait; 0 when it does not say.
	RetryAfter time.Duration
}

func (e *APIError) Error() string {
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	if text == "" {
		text = fmt.Sprintf("status %d", e.Status)
	}
	for i, d := range e.Errors {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		text += sep + d.Message
		if d.Location != "" {
			text += " (" + d.Location + ")"
		}
	}
	return text
}

// NotFound tells whether the server said that there is no such thing.
func NotFound(err error) bool {
	var e *APIError
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// UnreachableError says that nobody answers.
type UnreachableError struct {
	Server string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no Verbatim server answers at %s: start one with `verbatim up` or set VERBATIM_SERVER", e.Server)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

type request struct {
	method string
	path   string
	query  url.Values
	header http.Header
	// body is sent as JSON when it is not nil, stream as it is.
	body   any
	stream io.Reader
}

// send returns an answer of status 2xx; whoever gets it closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	u := *c.server
	u.Path += r.path
	u.RawQuery = r.query.Encode()
	body, contentType := r.stream, "application/octet-stream"
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	if c.o.Traceparent != "" {
		req.Header.Set("Traceparent", c.o.Traceparent)
	}
	if c.o.Wait > 0 {
		req.Header.Set("Prefer", fmt.Sprintf("wait=%d", (c.o.Wait+time.Second-1)/time.Second))
	}
	if c.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.o.Token)
	}
	resp, err := c.o.HTTP.Do(req)
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, problem(resp)
	}
	return resp, nil
}

func (c *Client) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return &UnreachableError{Server: c.server.String(), Err: err}
	}
	return fmt.Errorf("ask %s: %w", c.server, err)
}

func problem(resp *http.Response) *APIError {
	e := &APIError{Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode)}
	if s, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s"); err == nil {
		e.RetryAfter = s
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var p api.Problem
	if media == "application/problem+json" && json.NewDecoder(io.LimitReader(resp.Body, maxProblemBytes)).Decode(&p) == nil {
		e.Title, e.Detail, e.Errors = p.Title, p.Detail, p.Errors
		return e
	}
	e.Detail = fmt.Sprintf("the server answered %s, and not as Verbatim does", resp.Status)
	return e
}

// call sends and decodes a JSON answer into out.
func (c *Client) call(ctx context.Context, r request, out any) (http.Header, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return nil, fmt.Errorf("read answer of %s %s: %w", r.method, r.path, err)
	}
	return resp.Header, nil
}
