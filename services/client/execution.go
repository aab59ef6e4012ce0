package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
)

// submitPatience is how long a request is repeated after broken connections and 503 answers.
const submitPatience = 15 * time.Second

// Submit asks for an execution and returns when it is in the log. It repeats the request under the same
// id when the connection breaks or the server asks to come back.
func (c *Client) Submit(ctx context.Context, r api.SubmitRequest) (api.SubmitResponse, error) {
	id, err := events.NewExecutionID()
	if err != nil {
		return api.SubmitResponse{}, err
	}
	return c.SubmitAs(ctx, id, r)
}

// SubmitAs is Submit under an id (UUIDv7) that the caller chose. The same id with the same request is the same
// execution.
func (c *Client) SubmitAs(ctx context.Context, id string, r api.SubmitRequest) (api.SubmitResponse, error) {
	return backoff.Retry(ctx, func() (api.SubmitResponse, error) {
		var out api.SubmitResponse
		_, err := c.call(ctx, request{
			method: http.MethodPost, path: "/v1/executions", body: r,
			header: http.Header{api.HeaderIdempotencyKey: {id}},
		}, &out)
		if err != nil && !passing(err) {
			return out, backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithMaxElapsedTime(submitPatience))
}

// passing tells whether the same request may get a better answer later.
func passing(err error) bool {
	var a *APIError
	if errors.As(err, &a) {
		return a.Status == http.StatusServiceUnavailable || a.Status == http.StatusBadGateway || a.Status == http.StatusGatewayTimeout
	}
	var u *UnreachableError
	return !errors.As(err, &u) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// Row is an execution's row as it was answered.
type Row struct {
	execution.Row
	// Raw is the row's JSON as the server wrote it, with fields that this client does not know.
	Raw json.RawMessage `json:"-"`
	// Stale names the service whose newest work the row may lack, or is empty.
	Stale string `json:"-"`
}

// Get returns an execution's row. NotFound tells whether there is none.
func (c *Client) Get(ctx context.Context, id string) (Row, error) {
	var row Row
	h, err := c.call(ctx, request{method: http.MethodGet, path: executionPath(id)}, &row.Raw)
	if err != nil {
		return Row{}, err
	}
	if err := json.Unmarshal(row.Raw, &row.Row); err != nil {
		return Row{}, fmt.Errorf("read row of execution %s: %w", id, err)
	}
	row.Stale = h.Get(api.HeaderStale)
	return row, nil
}

// ListOptions selects rows; the zero value selects the newest.
type ListOptions struct {
	Status string
	// Since is how long ago ("1h", a Go duration) or a time (RFC 3339).
	Since  string
	Labels map[string]string
	// Limit is the number of rows of one page; 0: the server's own.
	Limit int
	// Before is the execution id to go on after, newest first: ListResponse.Next.
	Before string
}

// List returns one page of rows, newest first.
func (c *Client) List(ctx context.Context, o ListOptions) (api.ListResponse, error) {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Add(name, value)
		}
	}
	set("status", o.Status)
	set("since", o.Since)
	set("before", o.Before)
	for k, v := range o.Labels {
		q.Add("label", k+"="+v)
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	var out api.ListResponse
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/executions", query: q}, &out)
	return out, err
}

// All returns the rows of all pages, newest first.
func (c *Client) All(ctx context.Context, o ListOptions) iter.Seq2[execution.Row, error] {
	return func(yield func(execution.Row, error) bool) {
		for {
			page, err := c.List(ctx, o)
			if err != nil {
				yield(execution.Row{}, err)
				return
			}
			for _, row := range page.Executions {
				if !yield(row, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			o.Before = page.Next
		}
	}
}

// Cancel asks to stop an execution. An execution that ended already is an *APIError of status 409.
func (c *Client) Cancel(ctx context.Context, id string, r api.CancelRequest) (api.CancelResponse, error) {
	var out api.CancelResponse
	_, err := c.call(ctx, request{method: http.MethodPost, path: executionPath(id) + "/cancel", body: r}, &out)
	return out, err
}

// Query runs one read-only statement and returns its result in a ClickHouse format (empty: a table for
// people). Whoever gets it closes it.
func (c *Client) Query(ctx context.Context, sql, format string, parameters map[string]string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, request{method: http.MethodPost, path: "/v1/query", body: api.QueryRequest{SQL: sql, Format: format, Parameters: parameters}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Runners returns the runners of which something was heard in the last minutes, by id.
func (c *Client) Runners(ctx context.Context) ([]api.Runner, error) {
	var out api.RunnersResponse
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/runners"}, &out)
	return out.Runners, err
}

// Ready asks whether everything the server needs works. A server that is up and not ready is no error.
func (c *Client) Ready(ctx context.Context) (api.Health, error) {
	u := *c.server
	u.Path += "/readyz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return api.Health{}, fmt.Errorf("make request: %w", err)
	}
	if c.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.o.Token)
	}
	resp, err := c.o.HTTP.Do(req)
	if err != nil {
		return api.Health{}, c.failure(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.Header.Get("Content-Type") != "application/json" {
		return api.Health{}, problem(resp)
	}
	var h api.Health
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
		return api.Health{}, fmt.Errorf("read answer of GET /readyz: %w", err)
	}
	return h, nil
}

func executionPath(id string) string { return "/v1/executions/" + url.PathEscape(id) }

// Cordon lets a runner take no more attempts, or take them again.
func (c *Client) Cordon(ctx context.Context, runner string, on bool, r api.CordonRequest) (api.CordonResponse, error) {
	verb := "/uncordon"
	if on {
		verb = "/cordon"
	}
	var out api.CordonResponse
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/runners/" + url.PathEscape(runner) + verb, body: r}, &out)
	return out, err
}
