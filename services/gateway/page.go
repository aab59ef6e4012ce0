package gateway

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/barrier"
)

//go:embed page
var pageFiles embed.FS

// pagePolicy lets the pages load what is embedded here and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// pageBudget is how long a page waits for the newest rows.
const pageBudget = 300 * time.Millisecond

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"command": func(r execution.Row) string {
		if r.Action != nil {
			return *r.Action
		}
		return shown(r.Command)
	},
	"when": func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05 UTC")
	},
	"took": func(ms *int64) string {
		if ms == nil {
			return ""
		}
		return (time.Duration(*ms) * time.Millisecond).String()
	},
	"bytes": func(n *uint64) string {
		if n == nil {
			return ""
		}
		return strconv.FormatUint(*n, 10) + " bytes"
	},
	"complete": func(r execution.Row) string {
		switch {
		case r.Complete != nil && *r.Complete:
			return "complete, proven"
		case r.Complete != nil:
			return "not complete"
		case r.Sealed:
			return "sealed, not proven"
		}
		return "not sealed yet"
	},
	"ending": func(r execution.Row) string {
		switch {
		case r.Signal != nil:
			return "signal " + *r.Signal
		case r.ExitCode != nil:
			return strconv.Itoa(int(*r.ExitCode))
		}
		return ""
	},
}).ParseFS(pageFiles, "page/page.html"))

// shown writes a command so that its arguments can be told apart, and not at any length.
func shown(argv []string) string {
	var out []string
	for _, a := range argv {
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$`") {
			a = strconv.Quote(a)
		}
		out = append(out, a)
	}
	text := strings.Join(out, " ")
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return text
}

func (g *Gateway) registerPages() {
	assets, err := fs.Sub(pageFiles, "page/assets")
	if err != nil {
		panic(fmt.Errorf("embedded files: %w", err)) // They are part of this program.
	}
	g.routes.HandleFunc("GET /assets/{file}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("file")
		if _, err := fs.Stat(assets, name); err != nil {
			writeProblem(w, problem(http.StatusNotFound, "there is no such file"))
			return
		}
		http.ServeFileFS(w, r, assets, name)
	})
	g.routes.HandleFunc("GET /{$}", g.listPage)
	g.routes.HandleFunc("GET /executions/{id}", g.executionPage)
}

func (g *Gateway) listPage(w http.ResponseWriter, r *http.Request) {
	data := struct {
		Rows  []execution.Row
		Stale string
	}{}
	if !g.projector.Wait(r.Context(), barrier.AllPartitions, pageBudget) {
		data.Stale = staleProjector
	}
	var err error
	if data.Rows, err = g.d.Rows.List(r.Context(), clickhouse.Filter{Limit: defaultLimit}); err != nil {
		writeProblem(w, g.unavailable(r.Context(), "the rows cannot be read: the database does not answer", err))
		return
	}
	g.page(w, r, "list", data)
}

func (g *Gateway) executionPage(w http.ResponseWriter, r *http.Request) {
	row, _, err := g.row(r.Context(), r.PathValue("id"), rowBudget)
	if err != nil {
		writeProblem(w, err)
		return
	}
	var names []string
	for _, t := range events.Types() {
		names = append(names, api.NameOf(t))
	}
	g.page(w, r, "execution", struct {
		Row   execution.Row
		Names string
	}{row, strings.Join(names, " ")})
}

func (g *Gateway) page(w http.ResponseWriter, r *http.Request, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		g.c.Logger.ErrorContext(r.Context(), "a page could not be made", "page", name, "error", err)
		writeProblem(w, problem(http.StatusInternalServerError, "this page could not be made"))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(b.Bytes()) // The caller is gone; nobody is left to tell.
}
