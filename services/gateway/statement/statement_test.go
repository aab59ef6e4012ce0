package statement_test

import (
	"strings"
	"testing"

	"verbatim.dev/services/gateway/statement"
)

func TestReadingStatementsPass(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{
		"SELECT 1", "  select 1 ;", "select 1;; -- done", "/* a */ WITH 1 AS x SELECT x", "(SELECT 1) UNION ALL (SELECT 2)",
		"SHOW TABLES", "describe table executions", "DESC executions", "EXPLAIN SELECT 1", "EXISTS TABLE x",
		"SELECT 'file(''/etc/passwd'')', 'a;b', \"url\" FROM executions -- url('x')",
		"SELECT url, file FROM executions WHERE file = 'x'",
		"SELECT $a$ file('x'); $a$", "SELECT * FROM numbers(10)", "SELECT * FROM view(SELECT 1)",
		"SELECT trim(BOTH 'x' FROM lower(status)), extract(year FROM now()) FROM executions",
		"SELECT count() FROM (SELECT * FROM executions FINAL) AS e JOIN events AS v ON v.execution_id = e.execution_id",
		"SELECT 1 # comment; DROP TABLE x", "SELECT `a;b` FROM executions", "SELECT 'it\\'s; fine'", "SELECT 'a\\'; DROP TABLE x -- '",
		"SELECT 1e5, 0x1F, .5, 1.5 FROM executions", "SELECT [1,2][1], {'a': 1}['a'], x -> x + 1",
	} {
		if err := statement.Check(sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestEverythingElseIsRefused(t *testing.T) {
	t.Parallel()
	for sql, says := range map[string]string{
		"":                                       "no statement",
		"  -- nothing":                           "no statement",
		"((":                                     "no statement",
		"INSERT INTO x VALUES (1)":               "only SELECT",
		"DROP TABLE executions":                  "only SELECT",
		"SET max_execution_time = 0":             "only SELECT",
		"SYSTEM SHUTDOWN":                        "only SELECT",
		"'SELECT'":                               "only SELECT",
		"\"SELECT\" 1":                           "only SELECT",
		"SELECT 1; DROP TABLE x":                 "one statement",
		"SELECT 1;/**/SELECT 2":                  "one statement",
		"SELECT 'a":                              "not closed",
		"SELECT * FROM file('/etc/passwd')":      "file reaches out",
		"SELECT * FROM FiLe ('/etc/passwd')":     "reaches out",
		"SELECT * FROM url/* c */('http://x')":   "reaches out",
		"SELECT * FROM url -- c\n('http://x')":   "reaches out",
		"SELECT * FROM `url`('http://x')":        "reaches out",
		"SELECT * FROM \"remote\"('x')":          "reaches out",
		"SELECT file('/etc/passwd')":             "reaches out",
		"SELECT * FROM executions, s3('x')":      "reaches out",
		"SELECT 1 WHERE 1 IN file('x')":          "reaches out",
		"DESCRIBE TABLE url('http://x')":         "reaches out",
		"SELECT * FROM somethingNew('x')":        "not among those",
		"SELECT * FROM a JOIN other('x')":        "not among those",
		"SELECT * FROM executable('x', CSV)":     "reaches out",
		"SELECT 1 INTO OUTFILE '/tmp/x'":         "OUTFILE",
		"SELECT * FROM '/etc/passwd'":            "file",
		"SELECT * FROM `/etc/passwd`":            "file",
		"SELECT * FROM x, \"/etc/passwd\"":       "file",
		"SELECT \"a\\x60b\" FROM x":              "backslash",
		"SELECT “a”":                             "outside of quotes",
		"SELECT\u00a01":                          "outside of quotes",
		"SELECT 1\x00":                           "outside of quotes",
		"SELECT $a$ x":                           "heredoc",
		"SELECT /* x":                            "comment",
		"SELECT " + strings.Repeat(" ", 300<<10): "limit",
	} {
		err := statement.Check(sql)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60q: error %v does not speak of %q", sql, err, says)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("SELECT 'a' FROM `b` -- c")
	f.Add("$a$ $a$ /* */ \"")
	f.Fuzz(func(_ *testing.T, sql string) {
		_ = statement.Check(sql) // It ends, and does not panic.
	})
}
