package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"verbatim.dev/services/gateway/api"
)

func TestAQueryIsPassedOnWithFences(t *testing.T) {
	t.Parallel()
	s := start(t)
	var parameters url.Values
	var sql, user, key string
	s.answers(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		parameters, sql, user, key = r.URL.Query(), string(body), r.Header.Get("X-ClickHouse-User"), r.Header.Get("X-ClickHouse-Key")
		w.Header().Set("Content-Type", "application/x-ndjson; charset=UTF-8")
		fmt.Fprintln(w, `{"a":1}`)
	})
	a := s.do("POST", "/v1/query", object{"sql": "SELECT 1 AS a", "format": "JSONEachRow"})
	if a.StatusCode != http.StatusOK || string(a.body) != "{\"a\":1}\n" || a.Header.Get("Content-Type") != "application/x-ndjson; charset=UTF-8" {
		t.Errorf("%d %q %v", a.StatusCode, a.body, a.Header)
	}
	if sql != "SELECT 1 AS a" || user != "default" || key != "hidden" {
		t.Errorf("asked %q as %q", sql, user)
	}
	for name, value := range map[string]string{
		"readonly": "1", "default_format": "JSONEachRow", "database": "verbatim", "max_execution_time": "60", "max_result_bytes": "536870912", "wait_end_of_query": "1",
	} {
		if parameters.Get(name) != value {
			t.Errorf("%s is %q, want %q", name, parameters.Get(name), value)
		}
	}
	if s.do("POST", "/v1/query", object{"sql": "SELECT 1"}); parameters.Get("default_format") != "PrettyCompactMonoBlock" {
		t.Error(parameters)
	}
	for sql, says := range map[string]string{"DROP TABLE executions": "only SELECT", "SELECT 1; SELECT 2": "one statement", "SELECT * FROM url('x')": "reaches out"} {
		s.do("POST", "/v1/query", object{"sql": sql}).problem(t, http.StatusUnprocessableEntity, says)
	}
	s.do("POST", "/v1/query", object{"sql": "SELECT 1", "format": "TSV&readonly=0"}).problem(t, http.StatusUnprocessableEntity, "format")
	s.do("POST", "/v1/query", object{}).problem(t, http.StatusUnprocessableEntity, "sql")
	s.append(newStory(t).requested())
	if a := s.do("POST", "/v1/query", object{"sql": "SELECT 1"}); a.Header.Get(api.HeaderStale) != "projector, recorder" {
		t.Error(a.Header)
	}
}

func TestWhatClickHouseSaysIsPassedOn(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.answers(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-ClickHouse-Exception-Code", "60")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintln(w, "Code: 60. DB::Exception: Unknown table expression identifier 'x'. (UNKNOWN_TABLE)")
	})
	s.do("POST", "/v1/query", object{"sql": "SELECT * FROM x"}).problem(t, http.StatusBadRequest, "Code: 60. DB::Exception: Unknown table expression identifier 'x'", "ClickHouse error 60")

	s.answers(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-ClickHouse-Exception-Code", "516")
		w.WriteHeader(http.StatusForbidden)
	})
	s.do("POST", "/v1/query", object{"sql": "SELECT 1"}).problem(t, http.StatusServiceUnavailable, "user")
	s.answers(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nginx", http.StatusBadGateway) })
	s.do("POST", "/v1/query", object{"sql": "SELECT 1"}).problem(t, http.StatusServiceUnavailable, "not ClickHouse")
	s.answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	a := s.do("POST", "/v1/query", object{"sql": "SELECT 1"})
	a.problem(t, http.StatusServiceUnavailable, "database")
	if strings.Contains(string(a.body), "127.0.0.1") {
		t.Errorf("%s", a.body)
	}
	// A result that breaks off is no result.
	s.answers(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Repeat("x", 100_000))
		panic(http.ErrAbortHandler)
	})
	resp, err := http.Post(s.url+"/v1/query", "application/json", strings.NewReader(`{"sql":"SELECT 1"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("half a result looks whole")
	}
}
