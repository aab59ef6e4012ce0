package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"verbatim.dev/services/gateway/api"
)

// retryLater is what a 503 asks clients to wait, in seconds.
const retryLater = 5

// problem is an error with a status and a sentence for the caller.
func problem(status int, detail string, faults ...*huma.ErrorDetail) error {
	p := &huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: detail, Errors: faults}
	if status == http.StatusServiceUnavailable {
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {strconv.Itoa(retryLater)}})
	}
	return p
}

// fault names what is wrong with one part of a request. It never repeats the value: that may be
// long, or a secret.
func fault(location, message string) *huma.ErrorDetail {
	return &huma.ErrorDetail{Location: location, Message: message}
}

// unavailable hides what a store or a broker said, which is for the log and not for callers.
func (g *Gateway) unavailable(ctx context.Context, detail string, err error) error {
	if ctx.Err() == nil {
		g.c.Logger.WarnContext(ctx, "a request could not be served", "detail", detail, "error", err)
	}
	return problem(http.StatusServiceUnavailable, detail)
}

// withoutValues keeps the values of a request out of the answer about its faults.
func withoutValues(_ huma.Context, _ string, v any) (any, error) {
	if p, ok := v.(*huma.ErrorModel); ok {
		for _, d := range p.Errors {
			d.Value = nil
		}
	}
	return v, nil
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, err error) {
	p := &huma.ErrorModel{Status: http.StatusInternalServerError, Title: http.StatusText(http.StatusInternalServerError)}
	var withHeaders huma.HeadersError
	if errors.As(err, &withHeaders) {
		for name, values := range withHeaders.GetHeaders() {
			w.Header()[name] = values
		}
	}
	errors.As(err, &p)
	h := w.Header()
	for _, name := range []string{"Content-Length", "Etag", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	h.Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(p) // The caller is gone; nobody is left to tell.
}

// apiProblem is the same for the inside of a stream.
func apiProblem(err error) api.Problem {
	p := &huma.ErrorModel{Status: http.StatusInternalServerError, Title: http.StatusText(http.StatusInternalServerError)}
	errors.As(err, &p)
	return api.Problem{Status: p.Status, Title: p.Title, Detail: p.Detail}
}
