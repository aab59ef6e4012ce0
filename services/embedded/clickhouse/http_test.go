package clickhouse_test

import (
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// Tests of the HTTP interface as curl, Grafana and other clients use it.

// database makes a database and returns its name, for requests without a client library.
func database(t testing.TB) string {
	dsn := clickhousetest.Database(t)
	return dsn[strings.LastIndexByte(dsn, '/')+1:]
}

func TestHealth(t *testing.T) {
	t.Parallel()
	address := "http://" + clickhousetest.Start(t).Addr()
	for path, want := range map[string]int{"/": 200, "/ping": 200, "/replicas_status": 200, "/nothing": 404} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			request, err := http.NewRequestWithContext(t.Context(), method, address+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := plain.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s %s: %d, want %d", method, path, response.StatusCode, want)
			}
			if ok := string(body) == "Ok.\n"; method == http.MethodGet && ok != (want == 200) {
				t.Errorf("%s %s: body %q", method, path, body)
			}
		}
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	if a := call(t, http.MethodOptions, nil, nil); a.status != http.StatusNoContent || !strings.Contains(a.header.Get("Allow"), "POST") {
		t.Errorf("OPTIONS: %d %v", a.status, a.header)
	}
	if a := call(t, http.MethodDelete, nil, nil, "query=SELECT 1"); a.status != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %d", a.status)
	}
	if a := call(t, http.MethodHead, nil, nil, "query=SELECT 1"); a.status != http.StatusOK || a.header.Get("X-ClickHouse-Format") != "TabSeparated" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
}

func TestWhereTheQueryStands(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]answer{
		"URL, GET":                   call(t, http.MethodGet, nil, nil, "query=SELECT 1"),
		"URL, POST":                  call(t, http.MethodPost, nil, nil, "query=SELECT 1"),
		"body":                       call(t, http.MethodPost, strings.NewReader("SELECT 1"), nil),
		"body of curl -d":            call(t, http.MethodPost, strings.NewReader("SELECT 1"), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}),
		"URL and body":               call(t, http.MethodPost, strings.NewReader("1"), nil, "query=SELECT"),
		"with a semicolon":           call(t, http.MethodGet, nil, nil, "query=SELECT 1;"),
		"with a parameter":           call(t, http.MethodGet, nil, nil, "query=SELECT {x:UInt8}", "param_x=1"),
		"with a default format":      call(t, http.MethodGet, nil, nil, "query=SELECT 1", "default_format=CSV"),
		"with a format header":       call(t, http.MethodGet, nil, http.Header{"X-Clickhouse-Format": {"CSV"}}, "query=SELECT 1"),
		"with a user":                call(t, http.MethodGet, nil, http.Header{"X-Clickhouse-User": {"default"}}, "query=SELECT 1"),
		"with a basic auth":          call(t, http.MethodGet, nil, http.Header{"Authorization": {"Basic ZGVmYXVsdDo="}}, "query=SELECT 1"),
		"with a setting":             call(t, http.MethodGet, nil, nil, "query=SELECT getSetting('max_threads')", "max_threads=1"),
		"with a database":            call(t, http.MethodGet, nil, nil, "query=SELECT dummy + 1 FROM one", "database=system"),
		"with a database in headers": call(t, http.MethodGet, nil, http.Header{"X-Clickhouse-Database": {"system"}}, "query=SELECT dummy + 1 FROM one"),
		"not a SELECT":               call(t, http.MethodGet, nil, nil, "query=EXISTS TABLE system.one"),
		"with a comment":             call(t, http.MethodGet, nil, nil, "query=/* FORMAT JSON */ SELECT 1 -- FORMAT JSON"),
	} {
		if a.status != http.StatusOK || a.body != "1\n" {
			t.Errorf("%s: %d %q %v", name, a.status, a.body, a.err)
		}
	}
	if a := call(t, http.MethodPost, strings.NewReader("1+1"), nil); a.status != http.StatusBadRequest {
		t.Errorf("an expression alone is no query on a server: %d %q", a.status, a.body)
	}
}

// What a server refuses is refused here too, so that it is not met in production first.
func TestLongParameter(t *testing.T) {
	t.Parallel()
	const limit = 128 << 10 // http_max_field_value_size, counted as it stands in the URL.
	length := func(value string) answer {
		return call(t, http.MethodPost, strings.NewReader("SELECT length({x:String})"), nil, "param_x="+value)
	}
	if a := length(strings.Repeat("x", limit)); a.status != http.StatusOK || a.body != "131072\n" {
		t.Errorf("%d %.200q %v", a.status, a.body, a.err)
	}
	for _, value := range []string{strings.Repeat("x", limit+1), strings.Repeat("'", limit/3+1)} {
		if a := length(value); a.status == http.StatusOK || !strings.Contains(a.body, "Field value too long") {
			t.Errorf("%d bytes: %d %.200q %v", len(value), a.status, a.body, a.err)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	a := call(t, http.MethodPost, strings.NewReader("SELECT number FROM numbers(10)"), nil, "query_id=my id", "default_format=JSON")
	for name, want := range map[string]string{
		"X-ClickHouse-Query-Id": "my id", "X-ClickHouse-Format": "JSON", "Content-Type": "application/json; charset=UTF-8",
		"X-ClickHouse-Server-Display-Name": "verbatim embedded",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	summary := map[string]string{}
	if err := json.Unmarshal([]byte(a.header.Get("X-ClickHouse-Summary")), &summary); err != nil || summary["read_rows"] != "10" || summary["result_rows"] != "10" {
		t.Errorf("summary %v: %v", summary, err)
	}
	name := database(t)
	post(t, "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a", "database="+name)
	a = call(t, http.MethodPost, strings.NewReader("INSERT INTO t VALUES (1), (2), (3)"), nil, "database="+name)
	if err := json.Unmarshal([]byte(a.header.Get("X-ClickHouse-Summary")), &summary); err != nil || summary["written_rows"] != "3" {
		t.Errorf("summary of an insert %v: %v", summary, err)
	}
	a = call(t, http.MethodPost, strings.NewReader("SELECT * FROM nowhere"), nil)
	if a.header.Get("X-ClickHouse-Exception-Code") != "60" || !strings.HasPrefix(a.body, "Code: 60. DB::Exception: ") || a.status != http.StatusNotFound {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
	if a := call(t, http.MethodGet, nil, nil, "query=SELECT 1"); len(a.header.Get("X-ClickHouse-Query-Id")) != 36 {
		t.Errorf("no query id was made up: %v", a.header)
	}
}

func TestGetIsReadOnly(t *testing.T) {
	t.Parallel()
	name := database(t)
	post(t, "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a", "database="+name)
	for _, sql := range []string{"CREATE TABLE u (a UInt8) ENGINE = Memory", "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT 1", "DROP TABLE t"} {
		for _, readonly := range []string{"readonly=", "readonly=0", "readonly=1"} {
			params := []string{"database=" + name, "query=" + sql}
			if readonly != "readonly=" {
				params = append(params, readonly)
			}
			if a := call(t, http.MethodGet, nil, nil, params...); a.header.Get("X-ClickHouse-Exception-Code") != "164" {
				t.Errorf("GET %s with %s: %d %s", sql, readonly, a.status, a.body)
			}
		}
		if a := call(t, http.MethodPost, nil, nil, "database="+name, "query="+sql, "readonly=1"); a.header.Get("X-ClickHouse-Exception-Code") != "164" {
			t.Errorf("POST with readonly %s: %d %s", sql, a.status, a.body)
		}
	}
	if n := post(t, "SELECT count() FROM t", "database="+name); n != "0\n" {
		t.Errorf("a read-only request wrote: %s", n)
	}
	if a := call(t, http.MethodGet, nil, nil, "query=SELECT 1", "readonly=1", "max_threads=1"); a.body != "1\n" {
		t.Errorf("settings beside readonly: %d %s", a.status, a.body)
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]http.Header{
		"user":       {"X-Clickhouse-User": {"root"}},
		"password":   {"X-Clickhouse-User": {"default"}, "X-Clickhouse-Key": {"secret-word"}},
		"basic auth": {"Authorization": {"Basic cm9vdDpzZWNyZXQtd29yZA=="}},
	} {
		a := call(t, http.MethodPost, strings.NewReader("SELECT 1"), header)
		if a.status != http.StatusForbidden || a.header.Get("X-ClickHouse-Exception-Code") != "516" || strings.Contains(a.body, "secret-word") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

// A web page in a browser of this machine must not reach the database.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		host, origin string
		want         int
	}{
		"no browser":     {"", "", 200},
		"own page":       {"", "http://localhost:3000", 200},
		"other page":     {"", "https://example.org", 403},
		"sandboxed page": {"", "null", 403},
		"rebound name":   {"evil.example.org:8123", "", 403},
		"localhost":      {"localhost:8123", "", 200},
		"IPv6":           {"[::1]:8123", "", 200},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+clickhousetest.Start(t).Addr()+"/", strings.NewReader("SELECT 1"))
		if err != nil {
			t.Fatal(err)
		}
		request.Host = c.host
		if c.origin != "" {
			request.Header.Set("Origin", c.origin)
		}
		response, err := plain.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != c.want {
			t.Errorf("%s: %d, want %d", name, response.StatusCode, c.want)
		}
	}
}

func TestCompressedAnswers(t *testing.T) {
	t.Parallel()
	const sql = "SELECT number FROM numbers(200000)"
	want := post(t, sql)
	for encoding, open := range map[string]func(io.Reader) (io.Reader, error){
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"br":      func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
		"lz4":     func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil },
		"zstd":    func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
	} {
		a := call(t, http.MethodPost, strings.NewReader(sql), http.Header{"Accept-Encoding": {encoding + ", nothing;q=0"}}, "enable_http_compression=1")
		if a.header.Get("Content-Encoding") != encoding {
			t.Errorf("%s: Content-Encoding %q", encoding, a.header.Get("Content-Encoding"))
			continue
		}
		r, err := open(strings.NewReader(a.body))
		if err != nil {
			t.Errorf("%s: %v", encoding, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, want %d: %v", encoding, len(got), len(want), err)
		}
		a = call(t, http.MethodPost, strings.NewReader(sql), http.Header{"Accept-Encoding": {encoding}}, "enable_http_compression=0")
		if a.body != want {
			t.Errorf("%s was not turned off", encoding)
		}
	}
	for _, method := range []string{"LZ4", "ZSTD", "NONE"} {
		a := call(t, http.MethodPost, strings.NewReader(sql), nil, "compress=1", "network_compression_method="+method)
		got, err := io.ReadAll(blockEnd{compress.NewReader(strings.NewReader(a.body))})
		if err != nil || string(got) != want {
			t.Errorf("blocks of %s: %d bytes, want %d: %v", method, len(got), len(want), err)
		}
	}
}

// blockEnd ends where the blocks end.
type blockEnd struct{ io.Reader }

func (b blockEnd) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return n, err
}

// Every format gives the same answer whether it is streamed, spooled or held back.
func TestFormatsOfLargeAnswers(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"TSV", "TabSeparatedRaw", "CSV", "CSVWithNames", "JSON", "JSONCompact", "JSONEachRow", "JSONStrings", "Values", "RowBinary", "RowBinaryWithNamesAndTypes", "Native", "Vertical", "XML", "Pretty"} {
		sql := "SELECT number AS n, toString(number) AS s FROM numbers(150000) SETTINGS output_format_write_statistics = 0, output_format_pretty_max_rows = 1000000 FORMAT " + format
		a := call(t, http.MethodPost, strings.NewReader(sql), nil)
		held := call(t, http.MethodPost, strings.NewReader(sql), nil, "wait_end_of_query=1")
		if a.status != http.StatusOK || a.body == "" || a.body != held.body {
			t.Errorf("%s: %d with %d bytes, held back %d with %d bytes", format, a.status, len(a.body), held.status, len(held.body))
		}
		if format == "JSON" {
			var parsed struct{ Rows int }
			if err := json.Unmarshal([]byte(a.body), &parsed); err != nil || parsed.Rows != 150000 {
				t.Errorf("JSON of a large answer has %d rows: %v", parsed.Rows, err)
			}
		}
		if strings.HasPrefix(format, "CSV") {
			if lines := strings.Count(a.body, "\n"); lines != 150000 && lines != 150001 {
				t.Errorf("%s has %d lines", format, lines)
			}
		}
	}
	totals := post(t, "SELECT number % 2 AS a, count() FROM numbers(10) GROUP BY a WITH TOTALS ORDER BY a")
	if totals != "0\t5\n1\t5\n\n0\t10\n" {
		t.Errorf("WITH TOTALS: %q", totals)
	}
	if a := post(t, "WITH x AS (SELECT 3 AS y) SELECT y FROM x FORMAT JSONEachRow;"); a != "{\"y\":3}\n" {
		t.Errorf("WITH: %q", a)
	}
}

// An answer that fails half-way breaks the connection, so that no client takes it for whole; with wait_end_of_query
// the error has its own status instead.
func TestAnswerThatFailsHalfway(t *testing.T) {
	t.Parallel()
	const sql = "SELECT number, throwIf(number = 300000) FROM numbers(400000) SETTINGS max_threads = 1"
	a := call(t, http.MethodPost, strings.NewReader(sql), nil)
	if a.err == nil || a.status != http.StatusOK || !strings.Contains(a.body, "\r\n__exception__\r\n"+a.header.Get("X-ClickHouse-Exception-Tag")+"\r\nCode: 395. DB::Exception") {
		t.Errorf("%d, %d bytes, ends with %q: %v", a.status, len(a.body), a.body[max(0, len(a.body)-300):], a.err)
	}
	a = call(t, http.MethodPost, strings.NewReader(sql), nil, "wait_end_of_query=1")
	if a.status != http.StatusInternalServerError || a.header.Get("X-ClickHouse-Exception-Code") != "395" || strings.Contains(a.body, "__exception__") {
		t.Errorf("held back: %d %.200s", a.status, a.body)
	}
	a = call(t, http.MethodPost, strings.NewReader(sql+" FORMAT JSON"), nil)
	if a.err == nil || !strings.Contains(a.body, "\r\n__exception__\r\n") {
		t.Errorf("JSON: %d, %d bytes: %v", a.status, len(a.body), a.err)
	}
	a = call(t, http.MethodPost, strings.NewReader("SELECT number, throwIf(number = 900) FROM numbers(1000) SETTINGS max_block_size = 100 FORMAT JSON"), nil)
	if a.status != http.StatusInternalServerError || a.header.Get("X-ClickHouse-Exception-Code") != "395" {
		t.Errorf("short JSON: %d %.200s", a.status, a.body)
	}
}

func TestClientThatGoesAway(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"TSV", "JSON", "JSON", "JSON", "JSON", "JSON"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan answer, 1)
		go func() {
			done <- callContext(t, ctx, http.MethodPost, strings.NewReader("SELECT number FROM system.numbers /* going away */ FORMAT "+format), nil)
		}()
		running := func() string {
			return post(t, "SELECT count() FROM system.processes WHERE query LIKE '%going away%' AND query NOT LIKE '%processes%'")
		}
		eventually(t, "the endless query runs", func() bool { return running() == "1\n" })
		cancel()
		<-done
		eventually(t, "the endless query ends", func() bool { return running() == "0\n" })
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	in := "session_id=" + t.Name()
	post(t, "CREATE TEMPORARY TABLE kept (a UInt8)", in)
	post(t, "INSERT INTO kept VALUES (1), (2)", in)
	post(t, "SET max_result_rows = 77", in)
	if got := post(t, "SELECT count(), getSetting('max_result_rows'), getSetting('max_threads') FROM kept", in, "max_threads=5"); got != "2\t77\t5\n" {
		t.Errorf("in the session: %q", got)
	}
	if got := post(t, "SELECT getSetting('max_threads') = 5, currentDatabase(), getSetting('max_result_rows')", in); got != "false\tdefault\t77\n" && got != "0\tdefault\t77\n" {
		t.Errorf("a parameter of one request stayed in the session: %q", got)
	}
	if a := call(t, http.MethodGet, nil, nil, in, "query=DROP TABLE kept"); a.header.Get("X-ClickHouse-Exception-Code") != "164" {
		t.Errorf("GET in a session: %d %s", a.status, a.body)
	}
	if got := post(t, "SELECT 1", in, "database=system"); got != "1\n" {
		t.Error(got)
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT * FROM kept"), nil); a.status != http.StatusNotFound {
		t.Errorf("outside the session: %d %s", a.status, a.body)
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT 1"), nil, "session_id=another", "session_check=1"); a.header.Get("X-ClickHouse-Exception-Code") != "372" {
		t.Errorf("unknown session: %d %s", a.status, a.body)
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT 1"), nil, "session_id=another", "session_timeout=99999"); a.header.Get("X-ClickHouse-Exception-Code") != "374" {
		t.Errorf("long timeout: %d %s", a.status, a.body)
	}
	post(t, "SELECT 1", in, "close_session=1")
	if a := call(t, http.MethodPost, strings.NewReader("SELECT * FROM kept"), nil, in, "close_session=1"); a.status != http.StatusNotFound {
		t.Errorf("after the end of the session: %d %s", a.status, a.body)
	}
}

// What SQL must not reach: files, programs and the network, with the rights of our user.
func TestSQLStaysInside(t *testing.T) {
	t.Parallel()
	name := database(t)
	secret := t.TempDir() + "/secret"
	for _, sql := range []string{
		"SELECT * FROM file('/etc/hostname', 'LineAsString')", "SELECT * FROM `/etc/hostname`", "SELECT * FROM default.`/etc/hostname`",
		"SELECT file('/etc/hostname')", "SELECT `file`('/etc/hostname')", "SELECT \"\\x66ile\"('/etc/hostname')", "SELECT FILE /* */ ('/etc/hostname')",
		"SELECT arrayMap(file, ['/etc/hostname'])", "SELECT * APPLY(file) FROM (SELECT '/etc/hostname' AS a)", "SELECT * APPLY file FROM (SELECT '/etc/hostname' AS a)",
		"CREATE FUNCTION f AS x -> file(x)",
		"SELECT 1 INTO OUTFILE '" + secret + "'", "SELECT 1 INTO/**/OUTFILE '" + secret + "' FORMAT JSON", "WITH 1 AS x SELECT x INTO\nOUTFILE '" + secret + "'",
		"EXPLAIN SELECT 1 INTO OUTFILE '" + secret + "'", "SHOW TABLES INTO OUTFILE '" + secret + "'",
		"INSERT INTO FUNCTION file('" + secret + "', 'LineAsString', 'a String') SELECT 'x'", "INSERT INTO FUNCTION file('" + secret + "', 'CSV', 'a String') VALUES ('x')",
		"CREATE TABLE f (a String) ENGINE = File(LineAsString, '/etc/hostname')", "CREATE TABLE f AS file('/etc/hostname', 'LineAsString')",
		"CREATE DATABASE f ENGINE = Filesystem('/etc')", "CREATE DATABASE f ENGINE = SQLite('/tmp/x')", "CREATE TABLE f (a String) ENGINE = URL('http://127.0.0.1:1', CSV)",
		"SELECT * FROM url('http://127.0.0.1:1', 'LineAsString')", "SELECT * FROM remote('127.0.0.1', system.one)", "SELECT * FROM s3('http://127.0.0.1:1/a/b')",
		"SELECT * FROM executable('x.sh', 'TSV', 'a String')", "SELECT * FROM executable('../../../../../../../bin/ls', 'TSV', 'a String')",
		"CREATE DICTIONARY f (a UInt64, b String) PRIMARY KEY a SOURCE(EXECUTABLE(command 'touch " + secret + "' format 'TSV')) LAYOUT(FLAT()) LIFETIME(0)",
		"BACKUP DATABASE default TO File('" + secret + "')", "SYSTEM SHUTDOWN", "CREATE USER x", "CREATE NAMED COLLECTION x AS a = 1",
		"INSERT INTO t FROM INFILE '/etc/hostname' FORMAT LineAsString",
	} {
		a := call(t, http.MethodPost, strings.NewReader(sql), nil, "database="+name)
		if a.status == http.StatusOK {
			t.Errorf("%s: %d %q", sql, a.status, a.body)
		}
	}
	if matches := glob(t, secret+"*"); len(matches) > 0 {
		t.Errorf("SQL wrote outside: %v", matches)
	}
	for _, sql := range []string{
		"CREATE TABLE outfile (file String, `into` String) ENGINE = Memory", "INSERT INTO outfile VALUES ('a', 'file(')", "SELECT file, `into` FROM outfile WHERE file = 'file(x)'",
		"SELECT count(file) FROM outfile", "SELECT 'INTO OUTFILE x'",
	} {
		post(t, sql, "database="+name)
	}
}

func TestDeepNesting(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{
		"SELECT " + strings.Repeat("(", 20_000) + "1" + strings.Repeat(")", 20_000),
		"SELECT " + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000),
		"SELECT " + strings.Repeat("NOT ", 20_000) + "1",
		"SELECT " + strings.Repeat("1+", 60_000) + "1",
	} {
		a := call(t, http.MethodPost, strings.NewReader(sql), nil, "max_parser_depth=16000", "max_ast_depth=1000000", "max_ast_elements=10000000", "max_expanded_ast_elements=10000000")
		if a.err != nil || a.status == http.StatusOK {
			t.Errorf("%.20s…: %d %.120s %v", sql, a.status, a.body, a.err)
		}
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT 1"), nil, "max_parser_depth=1000000"); a.header.Get("X-ClickHouse-Exception-Code") != "452" {
		t.Errorf("a parser that cannot be stopped: %d %s", a.status, a.body)
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT '"+strings.Repeat("x", 1<<20)+"'"), nil); a.status != http.StatusBadRequest {
		t.Errorf("a query over max_query_size: %d %.200s", a.status, a.body)
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT length('"+strings.Repeat("x", 2<<20)+"')"), nil, "max_query_size=9000000"); a.body != "2097152\n" {
		t.Errorf("a query below a raised max_query_size: %d %.200s", a.status, a.body)
	}
}
