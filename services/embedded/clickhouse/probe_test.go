package clickhouse_test

import (
	"net/http"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	for _, q := range []string{
		"SELECT number%2 a, count() FROM numbers(10) GROUP BY a WITH TOTALS",
		"SELECT 1;", "", "  ", "-- x", "SELECT 1; SELECT 2", "SELECT 1; SELEC 2", "SELECT 1 WHERE 0 FORMAT Native",
		"CREATE TABLE default.v (a UInt8, b String) ENGINE=Memory",
		"INSERT INTO default.v VALUES (1,'a'),(2,'b');", "INSERT INTO default.v VALUES (1+1, concat('x','y'))", "INSERT INTO default.v VALUES (1,'a'),(2,'b'); SELECT 1",
		"INSERT INTO default.v SELECT 5, 'z'", "INSERT INTO default.v (a) VALUES (7)", "INSERT INTO default.v FORMAT JSONEachRow {\"a\": 3, \"b\": \"j\"}",
		"INSERT INTO default.v FORMAT CSV;\n1,x", "INSERT INTO default.v FORMAT Nope 1", "INSERT INTO default.v FORMAT CSV\n", "INSERT INTO default.v VALUES", "INSERT INTO default.v",
		"SELECT * FROM default.v ORDER BY a FORMAT JSONEachRow", "SHOW TABLES FROM default", "DESCRIBE TABLE default.v", "EXPLAIN SELECT 1", "WITH x AS (SELECT 1) SELECT * FROM x", "(SELECT 1)",
		"SELECT * APPLY(file) FROM (SELECT '/etc/hostname' a)", "SELECT `file`('/etc/hostname')", "SELECT arrayMap(file, ['/etc/hostname'])", "SELECT file /*x*/ ('/etc/hostname')", "SELECT \"\\x66ile\"('/etc/hostname')", "SELECT FILE('/etc/hostname')",
		"SELECT 1 INTO OUTFILE '/tmp/x'", "INSERT INTO default.v FROM INFILE '/etc/passwd' FORMAT CSV",
		"SELECT toDateTime64('2024-01-01 00:00:00',9,'UTC') SETTINGS max_threads=1 FORMAT JSONCompact",
		"KILL QUERY WHERE 1", "SYSTEM SHUTDOWN", "SET max_threads=7", "SELECT getSetting('max_threads')", "USE system", "SELECT currentDatabase()",
		"SELECT sum(number) FROM numbers(100000000) SETTINGS max_memory_usage=1000", "SELECT {x:String}", "SELECT 1 FORMAT Nope", "DROP TABLE default.v SYNC",
	} {
		a := call(t, http.MethodPost, strings.NewReader(q), nil)
		t.Logf("%q\n -> %d %.300q %s %s", q, a.status, a.body, a.header.Get("X-ClickHouse-Exception-Code"), a.header.Get("X-ClickHouse-Summary"))
	}
}
