package gateway

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
)

type outputInput struct {
	Preference
	ID      string `path:"id"`
	Stream  string `path:"stream" enum:"stdout,stderr"`
	Attempt uint32 `query:"attempt" doc:"Counts from 1; absent: the latest."`
	Range   string `header:"Range" doc:"One range of the bytes that exist, once the output is sealed."`
}

// output answers with the exact bytes of a stream. Of a sealed output the gaps are known, so it has a
// length and ranges; otherwise it is what there is now.
func (g *Gateway) output(ctx context.Context, in *outputInput) (*huma.StreamResponse, error) {
	row, stale, err := g.row(ctx, in.ID, in.wait(rowBudget))
	if err == nil {
		err = gone(row)
	}
	if err != nil {
		return nil, err
	}
	o := &reading{g: g, outputInput: *in, row: row, latest: in.Attempt == 0 || row.Attempt != nil && in.Attempt == *row.Attempt}
	if in.Attempt != 0 && (row.Attempt == nil || in.Attempt > *row.Attempt) {
		return nil, problem(http.StatusNotFound, fmt.Sprintf("execution %s has no attempt %d", in.ID, in.Attempt))
	}
	if o.Attempt == 0 && row.Attempt != nil {
		o.Attempt = *row.Attempt
	}
	if stale != "" {
		o.stale = append(o.stale, stale)
	}
	if !g.recorder.Wait(ctx, g.partition(in.ID), in.wait(bytesBudget)) {
		o.stale = append(o.stale, g.late(staleRecorder))
	}
	if o.latest && row.Sealed && len(o.stale) == 0 {
		return &huma.StreamResponse{Body: o.bounded(o.sealed)}, nil
	}
	next, stop := iter.Pull2(g.archive.Output(ctx, in.ID, o.Attempt, in.Stream, 0, 0))
	first, err, some := next()
	if err != nil {
		stop()
		return nil, g.unavailable(ctx, "the output cannot be read: the database does not answer", err)
	}
	growing := o.bounded(func(hc huma.Context) { o.growing(hc, first, some, next) })
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer stop()
		growing(hc)
	}}, nil
}

// reading is one read of an output.
type reading struct {
	outputInput
	g      *Gateway
	row    execution.Row
	latest bool
	stale  []string
}

// bounded lets only so many be read at one time.
func (o *reading) bounded(serve func(huma.Context)) func(huma.Context) {
	return func(hc huma.Context) {
		if _, w := humago.Unwrap(hc); !o.g.downloads.TryAcquire(1) {
			writeProblem(w, o.g.tooManyDownloads())
			return
		}
		defer o.g.downloads.Release(1)
		serve(hc)
	}
}

// headers says what is known of the output before its first byte.
func (o *reading) headers(h http.Header) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set(api.HeaderAttempt, strconv.FormatUint(uint64(o.Attempt), 10))
	complete := "unknown"
	if o.latest && o.row.Complete != nil {
		complete = strconv.FormatBool(*o.row.Complete)
	}
	h.Set(api.HeaderComplete, complete)
	if len(o.stale) > 0 {
		h.Set(api.HeaderStale, strings.Join(o.stale, ", "))
	}
	if !o.latest {
		return
	}
	if r := spansOf(o.row.Missing, o.Stream); len(r) > 0 {
		h.Set(api.HeaderMissing, spansText(r))
	}
	if r := spansOf(o.row.Elided, o.Stream); len(r) > 0 {
		h.Set(api.HeaderElided, spansText(r))
	}
}

// sealed serves an output whose parts are known, with ranges. When a part is not where it must be, the
// connection breaks before the promised length.
func (o *reading) sealed(hc huma.Context) {
	r, w := humago.Unwrap(hc)
	o.headers(w.Header())
	size, digest := o.total()
	gaps := slices.Concat(spansOf(o.row.Missing, o.Stream), spansOf(o.row.Elided, o.Stream))
	if len(gaps) == 0 && digest != "" && o.row.Complete != nil && *o.row.Complete {
		w.Header().Set("Etag", `"`+digest+`"`)
	}
	content := o.content(r.Context(), between(size, gaps))
	defer content.close()
	http.ServeContent(&rangeProblem{ResponseWriter: w}, r, "", time.Time{}, content)
	if err := content.failure(); err != nil {
		o.cutShort(r.Context(), err)
	}
}

// growing serves what there is now. Ranges that are not there are named in the trailer.
func (o *reading) growing(hc huma.Context, chunk clickhouse.Chunk, some bool, next func() (clickhouse.Chunk, error, bool)) {
	r, w := humago.Unwrap(hc)
	o.headers(w.Header())
	w.Header().Set("Accept-Ranges", "none")
	w.Header().Set("Trailer", api.HeaderMissingFound)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	body := bufio.NewWriterSize(w, 64<<10)
	var at uint64
	var gaps []span
	for some {
		if chunk.Offset > at {
			gaps = append(gaps, span{at, chunk.Offset})
		}
		at = chunk.Offset + uint64(len(chunk.Data))
		if _, err := body.Write(chunk.Data); err != nil {
			return // The client is gone.
		}
		var err error
		if chunk, err, some = next(); err != nil {
			o.cutShort(r.Context(), err)
		}
	}
	if size, _ := o.total(); o.latest && o.row.Sealed && size > at {
		gaps = append(gaps, span{at, size})
	}
	if err := body.Flush(); err != nil {
		return
	}
	if o.latest {
		gaps = without(gaps, spansOf(o.row.Elided, o.Stream))
	}
	w.Header().Set(api.HeaderMissingFound, spansText(gaps))
}

// total is the number of bytes the stream has, as far as it is known, and the digest of its seal.
func (o *reading) total() (size uint64, digest string) {
	bytes, sum := o.row.StdoutBytes, o.row.StdoutSHA256
	if o.Stream == "stderr" {
		bytes, sum = o.row.StderrBytes, o.row.StderrSHA256
	}
	if bytes != nil {
		size = *bytes
	}
	if sum != nil {
		digest = *sum
	}
	return size, digest
}

// cutShort breaks the connection, so that the client does not take a part for the whole.
func (o *reading) cutShort(ctx context.Context, err error) {
	if ctx.Err() == nil {
		o.g.c.Logger.ErrorContext(ctx, "an output was cut short", "execution", o.ID, "stream", o.Stream, "error", err)
	}
	panic(http.ErrAbortHandler)
}

// rangeProblem answers a range that cannot be served as a problem, not as a line of text.
type rangeProblem struct {
	http.ResponseWriter
	answered bool
}

func (w *rangeProblem) WriteHeader(status int) {
	if status != http.StatusRequestedRangeNotSatisfiable {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.answered = true
	writeProblem(w.ResponseWriter, problem(status, "the range lies outside of the output: "+w.Header().Get("Content-Range")))
}

func (w *rangeProblem) Write(p []byte) (int, error) {
	if w.answered {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}
