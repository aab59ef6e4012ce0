package clickhouse

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"
)

func newQueryID() string { return uuid.NewString() }

// spoolKey carries the spool folder to the parsing of a request.
type spoolKey struct{}

func spoolFolder(r *http.Request) string {
	folder, _ := r.Context().Value(spoolKey{}).(string)
	return folder
}

// handler is the HTTP interface. https://clickhouse.com/docs/interfaces/http
func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.handlers.enter() {
			http.Error(w, errEngineClosed.Error(), http.StatusServiceUnavailable)
			return
		}
		defer s.handlers.leave()
		if problem := foreign(r); problem != "" {
			http.Error(w, problem, http.StatusForbidden)
			return
		}
		w.Header().Set("X-ClickHouse-Server-Display-Name", displayName)
		switch {
		case r.Method == http.MethodOptions:
			w.Header().Set("Allow", allowedMethods)
			w.WriteHeader(http.StatusNoContent)
		case !strings.Contains(allowedMethods, r.Method):
			w.Header().Set("Allow", allowedMethods)
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		case r.URL.Path == "/ping", r.URL.Path == "/replicas_status":
			answerOk(w)
		case r.URL.Path != "/" && r.URL.Path != "":
			http.Error(w, fmt.Sprintf("There is no handle %s. Use / or /ping for health checks, /?query=... or a POST to / for queries.", r.URL.Path), http.StatusNotFound)
		case r.Method != http.MethodPost && !strings.Contains(r.URL.RawQuery, "query="):
			answerOk(w)
		default:
			s.serveQuery(w, r.WithContext(context.WithValue(r.Context(), spoolKey{}, s.spool)))
		}
	})
}

const allowedMethods = "GET, HEAD, POST, OPTIONS"

func answerOk(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	_, _ = io.WriteString(w, "Ok.\n") // a client that has gone needs no answer
}

// foreign refuses web pages. There are no passwords here, so the same-origin rule is all that keeps a page in a browser
// on this machine from sending SQL: its requests carry another Origin, or, with a name that was rebound to a loopback
// address, another Host.
func foreign(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host = strings.Trim(host, "[]"); !isLoopbackHost(host) {
		return "the embedded clickhouse answers to 127.0.0.1, ::1 and localhost only"
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || !isLoopbackHost(u.Hostname()) {
			return "the embedded clickhouse does not answer web pages of other sites"
		}
	}
	return ""
}

// authenticate accepts the user default without a password, however it is named.
func authenticate(r *http.Request, params url.Values) error {
	user, password := first(params.Get("user"), r.Header.Get("X-ClickHouse-User")), first(params.Get("password"), r.Header.Get("X-ClickHouse-Key"))
	if name, pass, ok := r.BasicAuth(); ok {
		user, password = first(user, name), first(password, pass)
	}
	if (user == "" || user == "default") && password == "" {
		return nil
	}
	return raise(codeAuthenticationFailed, "AUTHENTICATION_FAILED", "%s: Authentication failed: password is incorrect, or there is no user with such name", first(user, "default"))
}
