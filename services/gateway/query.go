package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/barrier"
	"verbatim.dev/services/gateway/statement"
)

const (
	defaultFormat = "PrettyCompactMonoBlock"
	// queryTime and queryBytes bound one query: what a person waits for, and what a tool can hold.
	queryTime  = time.Minute
	queryBytes = 512 << 20
	// maxErrorBytes bounds what is shown of ClickHouse's error text.
	maxErrorBytes = 16 << 10
	maxParameters = 64
)

var (
	formatName    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,63}$`)
	parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	// escape makes a value what ClickHouse reads as TabSeparated.
	escape = strings.NewReplacer("\\", `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`)
)

type queryInput struct {
	Preference
	Body api.QueryRequest
}

// query passes one reading statement to ClickHouse and its result back.
func (g *Gateway) query(ctx context.Context, in *queryInput) (*huma.StreamResponse, error) {
	format := in.Body.Format
	if format == "" {
		format = defaultFormat
	}
	v := &validation{}
	if !formatName.MatchString(format) {
		v.bad("body.format", "is no name of a format")
	}
	if len(in.Body.Parameters) > maxParameters {
		v.bad("body.parameters", fmt.Sprintf("there are %d, the limit is %d", len(in.Body.Parameters), maxParameters))
	}
	for name := range in.Body.Parameters {
		if !parameterName.MatchString(name) {
			v.bad("body.parameters", fmt.Sprintf("%q is no name of a parameter", name))
		}
	}
	if err := statement.Check(in.Body.SQL); err != nil {
		v.bad("body.sql", err.Error())
	}
	if len(v.faults) > 0 {
		return nil, problem(http.StatusUnprocessableEntity, "the query is not answered", v.faults...)
	}
	stale := g.lateForAll(ctx, in.wait(listBudget))
	resp, err := g.clickhouse.ask(ctx, in.Body.SQL, format, in.Body.Parameters)
	if err != nil {
		return nil, g.unavailable(ctx, "the query cannot be answered: the database does not answer", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, g.refusal(ctx, resp)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer resp.Body.Close()
		_, w := humago.Unwrap(hc)
		contentType := resp.Header.Get("Content-Type")
		if contentType == "" {
			contentType = "text/plain; charset=utf-8"
		}
		w.Header().Set("Content-Type", contentType)
		if stale != "" {
			w.Header().Set(api.HeaderStale, stale)
		}
		w.WriteHeader(http.StatusOK)
		if _, err := io.Copy(w, resp.Body); err != nil {
			if ctx.Err() == nil {
				g.c.Logger.WarnContext(ctx, "a result was cut short", "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

// lateForAll waits for both services at once and returns who is late after the budget.
func (g *Gateway) lateForAll(ctx context.Context, budget time.Duration) string {
	var both sync.WaitGroup
	var projector, recorder bool
	both.Go(func() { projector = g.projector.Wait(ctx, barrier.AllPartitions, budget) })
	both.Go(func() { recorder = g.recorder.Wait(ctx, barrier.AllPartitions, budget) })
	both.Wait()
	var late []string
	if !projector {
		late = append(late, g.late(staleProjector))
	}
	if !recorder {
		late = append(late, g.late(staleRecorder))
	}
	return strings.Join(late, ", ")
}

// refusal passes on what ClickHouse said about the statement.
func (g *Gateway) refusal(ctx context.Context, resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return g.unavailable(ctx, "the query cannot be answered: the database does not answer", err)
	}
	code := resp.Header.Get("X-ClickHouse-Exception-Code")
	detail := strings.ToValidUTF8(strings.TrimSpace(string(text)), "\uFFFD")
	switch {
	case resp.StatusCode == http.StatusUnauthorized, code == "516", code == "192", code == "194":
		return g.unavailable(ctx, "ClickHouse refuses the gateway's user", fmt.Errorf("status %d, code %s", resp.StatusCode, code))
	case code == "" && !strings.HasPrefix(detail, "Code: "):
		return g.unavailable(ctx, "the query cannot be answered: what answers is not ClickHouse", fmt.Errorf("status %d", resp.StatusCode))
	}
	if code == "" {
		code, _, _ = strings.Cut(strings.TrimPrefix(detail, "Code: "), ".")
	}
	return problem(http.StatusBadRequest, detail, fault("body.sql", "ClickHouse error "+code))
}

// queryClient speaks ClickHouse's HTTP interface.
type queryClient struct {
	base           string
	user, password string
	database       string
	http           *http.Client
}

func newQueryClient(address string) *queryClient {
	u, _ := url.Parse(address) // Config.Validate has parsed it before.
	q := &queryClient{database: strings.Trim(u.Path, "/"), base: u.Scheme + "://" + u.Host + "/"}
	q.user = u.User.Username()
	q.password, _ = u.User.Password()
	q.http = &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		ResponseHeaderTimeout: queryTime + 10*time.Second,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       30 * time.Second,
	}}
	return q
}

// ask runs a statement with ClickHouse's own fences around it. The result comes only when the statement has
// succeeded (wait_end_of_query), so that a status is the truth.
func (q *queryClient) ask(ctx context.Context, sql, format string, values map[string]string) (*http.Response, error) {
	parameters := url.Values{
		"readonly":           {"1"},
		"default_format":     {format},
		"wait_end_of_query":  {"1"},
		"max_execution_time": {fmt.Sprint(int(queryTime.Seconds()))},
		"max_result_bytes":   {fmt.Sprint(queryBytes)},
		"cancel_http_readonly_queries_on_client_close": {"1"},
	}
	for name, value := range values {
		parameters.Set("param_"+name, escape.Replace(value))
	}
	if q.database != "" {
		parameters.Set("database", q.database)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, q.base+"?"+parameters.Encode(), strings.NewReader(sql))
	if err != nil {
		return nil, fmt.Errorf("ask clickhouse: %w", err)
	}
	if q.user != "" {
		r.Header.Set("X-ClickHouse-User", q.user)
		r.Header.Set("X-ClickHouse-Key", q.password)
	}
	resp, err := q.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask clickhouse: %w", err)
	}
	return resp, nil
}

func (q *queryClient) close() { q.http.CloseIdleConnections() }
