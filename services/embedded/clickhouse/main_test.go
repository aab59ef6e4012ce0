package clickhouse_test

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("CLICKHOUSE_TEST_CHILD"); role != "" {
		os.Exit(child(role))
	}
	os.Exit(clickhousetest.Main(m))
}

// open connects clickhouse-go to a database of the test's own.
func open(t testing.TB, change ...func(*ch.Options)) ch.Conn {
	t.Helper()
	return openDSN(t, clickhousetest.Database(t), change...)
}

func openDSN(t testing.TB, dsn string, change ...func(*ch.Options)) ch.Conn {
	t.Helper()
	options, err := ch.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	options.MaxOpenConns = 40
	for _, c := range change {
		c(options)
	}
	conn, err := ch.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func do(t testing.TB, conn ch.Conn, sql string, args ...any) {
	t.Helper()
	if err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// value runs a query that answers with one value.
func value[T any](t testing.TB, conn ch.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// answer is what came back from a plain HTTP request.
type answer struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// call makes one HTTP request as curl would. params are name=value.
func call(t testing.TB, method string, body io.Reader, header http.Header, params ...string) answer {
	t.Helper()
	return callContext(t, t.Context(), method, body, header, params...)
}

func callContext(t testing.TB, ctx context.Context, method string, body io.Reader, header http.Header, params ...string) answer {
	t.Helper()
	values := url.Values{}
	for _, p := range params {
		name, v, _ := strings.Cut(p, "=")
		values.Add(name, v)
	}
	target := "http://" + clickhousetest.Start(t).Addr() + "/"
	if len(params) > 0 {
		target += "?" + values.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range header {
		request.Header[name] = v
	}
	response, err := plain.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(text), err}
}

// plain neither asks for compression nor keeps connections.
var plain = &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}

// post sends sql and fails the test on anything but 200.
func post(t testing.TB, sql string, params ...string) string {
	t.Helper()
	a := call(t, http.MethodPost, strings.NewReader(sql), nil, params...)
	if a.err != nil || a.status != http.StatusOK {
		t.Fatalf("%.200s: %d %s %v", sql, a.status, a.body, a.err)
	}
	return a.body
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	matches, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return matches
}
