package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"verbatim.dev/events"
)

// writeTimeout is how long one write to a client may take; a client that reads nothing for so long is
// gone.
const writeTimeout = 30 * time.Second

// response notes the status and gives every write its own deadline, so that streams may last and
// clients that do not read may not.
type response struct {
	http.ResponseWriter
	controller *http.ResponseController
	status     int
	// failed is why a write did not reach the client.
	failed error
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if err := w.controller.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("set write deadline: %w", err)
	}
	n, err := w.ResponseWriter.Write(p)
	if err != nil {
		w.failed = err
	}
	return n, err
}

// handler is the whole chain, from the outside to the inside:
//
//	observed     counts what the others refuse, too, and survives what panics
//	admitted     who may ask; before anything of the request is used
//	fitting      how much a request may hold in memory; before its body is read
//	routed       404 and 405 as problems; the rest is huma's and the page's
func (g *Gateway) handler(routes *http.ServeMux) http.Handler {
	return g.observed(g.admitted(g.fitting(routed(routes))))
}

func (g *Gateway) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rw := &response{ResponseWriter: w, controller: http.NewResponseController(w)}
		defer func() {
			p := recover()
			if p != nil && rw.failed != nil {
				p = http.ErrAbortHandler // huma panics when its client is gone.
			}
			if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // It is thrown as it is.
				g.c.Logger.ErrorContext(r.Context(), "a request panicked", "method", r.Method, "route", r.Pattern, "panic", fmt.Sprint(p), "stack", stack())
				if rw.status == 0 {
					writeProblem(rw, problem(http.StatusInternalServerError, "this request met a mistake in the gateway; its log says more"))
					p = nil
				}
			}
			g.metrics.request(r, rw.status, time.Since(began))
			if p != nil {
				panic(http.ErrAbortHandler) // The answer is cut short, and the client must see that.
			}
		}()
		h := rw.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(rw, r)
	})
}

// admitted lets nobody in who could not also start a process from a shell here: on loopback any program of this
// machine, but no web page (DNS rebinding, cross-origin requests); elsewhere who has the token.
func (g *Gateway) admitted(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(g.c.Token))
	origins := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/livez":
		case g.c.Token != "":
			token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			got := sha256.Sum256([]byte(token))
			if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				refuse(w, r, problem(http.StatusUnauthorized, "the right token is needed: Authorization: Bearer …"))
				return
			}
		case !localHost(r.Host):
			refuse(w, r, problem(http.StatusForbidden, "the Host of a request must be localhost, 127.0.0.1 or [::1], as long as the gateway has no token"))
			return
		}
		if err := origins.Check(r); err != nil {
			refuse(w, r, problem(http.StatusForbidden, "a web page of another origin may not do this"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func localHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	switch strings.ToLower(host) {
	case "localhost", "127.0.0.1", "::1", "[::1]":
		return true
	}
	return false
}

// bodiesAtOnce is how many bodies of the largest size may be in memory at one time.
const bodiesAtOnce = 8

// bodyTimeout is what a client has to send a body.
const bodyTimeout = time.Minute

func (g *Gateway) fitting(next http.Handler) http.Handler {
	memory := semaphore.NewWeighted(bodiesAtOnce * g.c.MaxBody)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit, timeout := g.c.MaxBody, bodyTimeout
		if r.URL.Path == uploadPath {
			limit, timeout = events.MaxStdinBytes, uploadTimeout
		}
		if r.ContentLength > limit {
			refuse(w, r, tooLarge(limit))
			return
		}
		size := r.ContentLength
		switch {
		case r.URL.Path == uploadPath:
			size = min(uploadMemory, bodiesAtOnce*g.c.MaxBody) // It is never in memory as a whole.
		case size < 0:
			size = limit
		}
		if !memory.TryAcquire(size) {
			refuse(w, r, problem(http.StatusServiceUnavailable, "too many large requests at one time"))
			return
		}
		defer memory.Release(size)
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &timedBody{ReadCloser: r.Body, timeout: timeout, controller: http.NewResponseController(w)}
		}
		next.ServeHTTP(w, r)
	})
}

// timedBody gives a client a time to send its body, from the first read on. The deadline goes when the
// body is read: the connection may wait for its answer for longer.
type timedBody struct {
	io.ReadCloser
	controller *http.ResponseController
	timeout    time.Duration
	begun      bool
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		if err := b.controller.SetReadDeadline(time.Now().Add(b.timeout)); err != nil {
			return 0, fmt.Errorf("set read deadline: %w", err)
		}
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.controller.SetReadDeadline(time.Time{}) // A closed connection says so at the next write.
	}
	return n, err
}

// refuse answers a request whose body nobody reads: neither does the server, which would wait for it first.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
	}
	writeProblem(w, err)
}

func tooLarge(limit int64) error {
	return problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's body is larger than %d bytes", limit))
}

// routed answers what no route matches in the same form as everything else.
func routed(routes *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := routes.Handler(r)
		if pattern != "" {
			routes.ServeHTTP(w, r)
			return
		}
		answer := &headersOnly{header: w.Header()}
		h.ServeHTTP(answer, r)
		if answer.status == http.StatusMethodNotAllowed {
			refuse(w, r, problem(answer.status, fmt.Sprintf("this method is not among what can be done here: %s", w.Header().Get("Allow"))))
			return
		}
		refuse(w, r, problem(http.StatusNotFound, "there is nothing at this path; /openapi.json lists what there is"))
	})
}

// headersOnly takes the standard library's answer apart.
type headersOnly struct {
	header http.Header
	status int
}

func (h *headersOnly) Header() http.Header         { return h.header }
func (h *headersOnly) WriteHeader(status int)      { h.status = status }
func (h *headersOnly) Write(p []byte) (int, error) { return len(p), nil }
