package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"verbatim.dev/services/gateway/api"
)

// OutputOptions selects a part of an output; the zero value selects all of the latest attempt.
type OutputOptions struct {
	// Attempt counts from 1; 0 is the latest.
	Attempt uint32
	// Range is an HTTP byte range over the bytes that exist, such as "bytes=-4096". It is honoured once the output is
	// sealed; see Output.Partial.
	Range string
}

// Range is the half-open range [Start, End) of a stream.
type Range struct {
	Start, End uint64
}

// Output is an output as it is read. Read ends with io.ErrUnexpectedEOF when the connection broke or
// bytes that the server counted on turned out to be absent.
type Output struct {
	body io.ReadCloser
	resp *http.Response

	Attempt uint32
	// Complete is nil while it is not known: the process runs.
	Complete *bool
	// Missing lists what is lost or has not arrived, Elided what was left out on purpose. What is
	// around them follows each other in the body.
	Missing, Elided []Range
	// Size is the length of the body in bytes, -1 when it is not known before its end.
	Size int64
	// Partial tells whether the body is the asked-for range and not the whole output.
	Partial bool
	// Stale names the service whose newest work the output may lack, or is empty.
	Stale string
}

// Output returns the exact bytes of a stream, "stdout" or "stderr". Whoever gets it closes it.
func (c *Client) Output(ctx context.Context, id, stream string, o OutputOptions) (*Output, error) {
	r := request{method: http.MethodGet, path: executionPath(id) + "/output/" + url.PathEscape(stream), query: url.Values{}, header: http.Header{}}
	if o.Attempt != 0 {
		r.query.Set("attempt", strconv.FormatUint(uint64(o.Attempt), 10))
	}
	if o.Range != "" {
		r.header.Set("Range", o.Range)
	}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	out := &Output{
		body: resp.Body, resp: resp, Size: resp.ContentLength,
		Partial: resp.StatusCode == http.StatusPartialContent, Stale: resp.Header.Get(api.HeaderStale),
	}
	attempt, _ := strconv.ParseUint(resp.Header.Get(api.HeaderAttempt), 10, 32)
	out.Attempt = uint32(attempt)
	if complete, err := strconv.ParseBool(resp.Header.Get(api.HeaderComplete)); err == nil {
		out.Complete = &complete
	}
	if out.Missing, err = parseRanges(resp.Header.Get(api.HeaderMissing)); err == nil {
		out.Elided, err = parseRanges(resp.Header.Get(api.HeaderElided))
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return out, nil
}

// Read implements io.Reader.
func (o *Output) Read(p []byte) (int, error) { return o.body.Read(p) }

// Close ends the reading.
func (o *Output) Close() error { return o.body.Close() }

// MissingFound returns, after Read said io.EOF, the ranges that turned out to be absent on the way.
func (o *Output) MissingFound() ([]Range, error) {
	return parseRanges(o.resp.Trailer.Get(api.HeaderMissingFound))
}

func parseRanges(s string) ([]Range, error) {
	if s == "" {
		return nil, nil
	}
	var out []Range
	for part := range strings.SplitSeq(s, ",") {
		start, end, _ := strings.Cut(strings.TrimSpace(part), "-")
		a, err1 := strconv.ParseUint(start, 10, 64)
		b, err2 := strconv.ParseUint(end, 10, 64)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("read byte ranges %q: %q is no range", s, part)
		}
		out = append(out, Range{a, b})
	}
	return out, nil
}
