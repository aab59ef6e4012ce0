package clickhouse_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// Tests of request bodies: INSERTs of every shape, and what breaks them.

// Inserts of every shape that curl users write, with what must have arrived.
func TestInsertShapes(t *testing.T) {
	t.Parallel()
	name := database(t)
	for i, c := range []struct{ url, body, want string }{
		{"", "INSERT INTO t VALUES (1, 'a'), (2, 'b')", "1a2b"},
		{"", "INSERT INTO t (b, a) VALUES ('x;y', 1);", "1x;y"},
		{"INSERT INTO t VALUES", "(1, 'a')", "1a"},
		{"INSERT INTO t FORMAT CSV", "1,a\n2,\"b\nc\"\n", "1a2b\nc"},
		{"INSERT INTO t FORMAT TSV", "1\ta\n2\tb", "1a2b"},
		{"INSERT INTO t (a) FORMAT JSONEachRow", `{"a": 1}{"a": 2}`, "12"},
		{"", "INSERT INTO t FORMAT JSONEachRow {\"a\": 1, \"b\": \"FORMAT CSV\"}", "1FORMAT CSV"},
		{"", "INSERT INTO TABLE t SELECT number, 'n' FROM numbers(2)", "0n1n"},
		{"", "INSERT INTO t (b, a) WITH 3 AS x SELECT 's', x FORMAT CSV", "3s"},
		{"", "INSERT INTO t SETTINGS max_insert_threads = 1 VALUES (1 + 1, upper('x'))", "2X"},
		{"", "INSERT INTO `t` /* VALUES */ (a, `b`) -- FORMAT\n VALUES (1, 'it''s \\' ok')", "1it's ' ok"},
		{"INSERT INTO t FORMAT LineAsString SETTINGS x", "", ""},
		{"INSERT INTO t FORMAT RowBinary", "\x01\x02\x00\xff\x02\x01;", "1\x00\xff2;"},
		{"INSERT INTO t FORMAT CSV", "", ""},
	} {
		table := fmt.Sprint("t", i)
		post(t, "CREATE TABLE "+table+" (a UInt8, b String) ENGINE = MergeTree ORDER BY a", "database="+name)
		fix := strings.NewReplacer("INTO t ", "INTO "+table+" ", "TABLE t ", "TABLE "+table+" ", "`t`", "`"+table+"`")
		params := []string{"database=" + name}
		if c.url != "" {
			params = append(params, "query="+fix.Replace(c.url))
		}
		a := call(t, http.MethodPost, strings.NewReader(fix.Replace(c.body)), nil, params...)
		if strings.HasSuffix(c.url, "SETTINGS x") {
			if a.status == http.StatusOK {
				t.Errorf("%q was accepted", c.url)
			}
			continue
		}
		if a.status != http.StatusOK {
			t.Errorf("%q %q: %d %s", c.url, c.body, a.status, a.body)
			continue
		}
		if got := post(t, "SELECT arrayStringConcat(groupArray(concat(toString(a), b))) FROM (SELECT * FROM "+table+" ORDER BY a) FORMAT TSVRaw", "database="+name); got != c.want+"\n" {
			t.Errorf("%q %q: the table holds %q, want %q", c.url, c.body, got, c.want)
		}
	}
	if a := call(t, http.MethodPost, strings.NewReader("INSERT INTO t0 VALUES (7, 'a'); (8, 'b')"), nil, "database="+name); a.header.Get("X-ClickHouse-Exception-Code") != "33" {
		t.Errorf("rows after the semicolon were dropped without a word: %d %s", a.status, a.body)
	}
	if n := post(t, "SELECT count() FROM t0 WHERE a > 6", "database="+name); n != "0\n" {
		t.Errorf("%s rows of a refused insert are there", n)
	}
}

// A body that breaks off inserts nothing, however it breaks off.
func TestInsertThatBreaksOff(t *testing.T) {
	t.Parallel()
	name := database(t)
	post(t, "CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a", "database="+name)
	var rows bytes.Buffer
	for i := range 50_000 {
		fmt.Fprintf(&rows, "%d,%s\n", i, "row")
	}
	insert := "/?database=" + name + "&query=INSERT%20INTO%20t%20FORMAT%20CSV"
	for what, head := range map[string]string{
		"content length": fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", insert, rows.Len()+5, rows.String()),
		"chunks":         fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", insert, rows.Len(), rows.String()),
	} {
		socket, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", clickhousetest.Start(t).Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(socket, head); err != nil {
			t.Fatal(err)
		}
		if err := socket.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(socket)
		socket.Close()
		if bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
			t.Errorf("%s: half a request was taken for a whole one: %s", what, answer)
		}
	}
	var block bytes.Buffer
	packer := compress.NewWriter(0, compress.LZ4)
	if err := packer.Compress(rows.Bytes()); err != nil {
		t.Fatal(err)
	}
	block.Write(packer.Data)
	for what, cut := range map[string]int{"in a block": block.Len() / 2, "after a header": 25, "in a header": 10} {
		a := call(t, http.MethodPost, bytes.NewReader(block.Bytes()[:cut]), nil, "database="+name, "query=INSERT INTO t FORMAT CSV", "decompress=1")
		if a.status == http.StatusOK {
			t.Errorf("cut %s: %d %s", what, a.status, a.body)
		}
	}
	broken := bytes.Clone(block.Bytes())
	broken[len(broken)/2] ^= 0xff
	if a := call(t, http.MethodPost, bytes.NewReader(broken), nil, "database="+name, "query=INSERT INTO t FORMAT CSV", "decompress=1"); a.header.Get("X-ClickHouse-Exception-Code") != "271" {
		t.Errorf("a broken block: %d %s", a.status, a.body)
	}
	if n := post(t, "SELECT count() FROM t", "database="+name); n != "0\n" {
		t.Errorf("%s rows of broken requests are there", strings.TrimSpace(n))
	}
}

// Much data after an error at its beginning must neither hang nor pile up.
func TestLargeInsertOfWrongData(t *testing.T) {
	t.Parallel()
	name := database(t)
	post(t, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a", "database="+name)
	body := io.LimitReader(endless("wrong\n"), 64<<20)
	a := call(t, http.MethodPost, body, nil, "database="+name, "query=INSERT INTO t FORMAT CSV")
	if a.err == nil && a.header.Get("X-ClickHouse-Exception-Code") != "117" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := post(t, "SELECT count() FROM t", "database="+name); n != "0\n" {
		t.Errorf("%s rows", n)
	}
}

func TestCompressedRequests(t *testing.T) {
	t.Parallel()
	for encoding, open := range map[string]func(io.Writer) io.WriteCloser{
		"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
		"br":      func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) },
		"lz4":     func(w io.Writer) io.WriteCloser { return lz4.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	} {
		var body bytes.Buffer
		w := open(&body)
		if _, err := io.WriteString(w, "SELECT count() FROM numbers(7)"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		a := call(t, http.MethodPost, bytes.NewReader(body.Bytes()), http.Header{"Content-Encoding": {encoding}})
		if a.status != http.StatusOK || a.body != "7\n" {
			t.Errorf("%s: %d %q", encoding, a.status, a.body)
		}
		a = call(t, http.MethodPost, strings.NewReader("SELECT 1, not compressed"), http.Header{"Content-Encoding": {encoding}})
		if a.status == http.StatusOK {
			t.Errorf("%s: a body that is not compressed was taken", encoding)
		}
	}
	if a := call(t, http.MethodPost, strings.NewReader("SELECT 1"), http.Header{"Content-Encoding": {"rot13"}}); a.status != http.StatusNotImplemented {
		t.Errorf("unknown encoding: %d %s", a.status, a.body)
	}
}

// endless repeats a text for ever.
type endless string

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	if n == 0 {
		n = copy(p, e)
	}
	return n, nil
}
