package clickhouse

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseStatement(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		verb, format, data string
		hasData            bool
	}{
		"select 1":                                            {verb: "SELECT"},
		"SELECT 1 FORMAT JSON":                                {verb: "SELECT", format: "JSON"},
		"SELECT 1 FORMAT JSON ; ":                             {verb: "SELECT", format: "JSON"},
		"SELECT 1 format JSON SETTINGS a = 1":                 {verb: "SELECT", format: "JSON"},
		"SELECT 1 /* x */ FORMAT -- y\n TSV":                  {verb: "SELECT", format: "TSV"},
		"SELECT 1 FORMAT `CSV`":                               {verb: "SELECT"},
		"SELECT format FROM t":                                {verb: "SELECT"},
		"SELECT format x FROM t":                              {verb: "SELECT"},
		"SELECT a, format b":                                  {verb: "SELECT"},
		"SELECT t.format b FROM t":                            {verb: "SELECT"},
		"SELECT ' FORMAT JSON'":                               {verb: "SELECT"},
		"SELECT \"a\" FORMAT CSV":                             {verb: "SELECT", format: "CSV"},
		"SELECT (1 FORMAT CSV":                                {verb: "SELECT"},
		"SELECT 1 -- FORMAT CSV":                              {verb: "SELECT"},
		"SELECT $$ FORMAT CSV $$":                             {verb: "SELECT"},
		"(SELECT 1) FORMAT CSV":                               {verb: "SELECT", format: "CSV"},
		"/* a /* nested */ b */ SHOW TABLES":                  {verb: "SHOW"},
		"INSERT INTO t VALUES (1)":                            {"INSERT", "Values", " (1)", true},
		"INSERT INTO t(a)VALUES(1)":                           {"INSERT", "Values", "(1)", true},
		"insert into table t format CSV\n1":                   {"INSERT", "CSV", "1", true},
		"INSERT INTO t FORMAT CSV \t\r\n\n1":                  {"INSERT", "CSV", "\n1", true},
		"INSERT INTO t FORMAT Native\x00FORMAT":               {"INSERT", "Native", "\x00FORMAT", true},
		"INSERT INTO values VALUES (1)":                       {"INSERT", "Values", " (1)", true},
		"INSERT INTO db.values (a) VALUES (1)":                {"INSERT", "Values", " (1)", true},
		"INSERT INTO `VALUES` (`FORMAT`) FORMAT CSV 1":        {"INSERT", "CSV", "1", true},
		"INSERT INTO FUNCTION f('VALUES', values) VALUES (1)": {"INSERT", "Values", " (1)", true},
		"INSERT INTO t SETTINGS a = 'VALUES' VALUES (1)":      {"INSERT", "Values", " (1)", true},
		"INSERT INTO t SELECT 1":                              {verb: "INSERT"},
		"INSERT INTO t SELECT 1 FORMAT CSV":                   {verb: "INSERT", format: "CSV"},
		"INSERT INTO t SELECT * FROM (VALUES (1))":            {verb: "INSERT"},
		"INSERT INTO t":                                       {verb: "INSERT"},
		"":                                                    {},
		"'":                                                   {},
		"SELECT '":                                            {verb: "SELECT"},
		"SELECT `\\":                                          {verb: "SELECT"},
	} {
		s := parseStatement([]byte(text))
		data := ""
		if s.hasData {
			data = text[s.dataOffset:]
		}
		if s.verb != want.verb || s.format != want.format || s.hasData != want.hasData || data != want.data {
			t.Errorf("%q: verb %q format %q data %v %q", text, s.verb, s.format, s.hasData, data)
		}
	}
}

func TestForbiddenStatements(t *testing.T) {
	t.Parallel()
	for text, code := range map[string]int{
		"SELECT 1 INTO OUTFILE 'x'": 358, "select 1 into\n/**/outfile 'x'": 358, "INSERT INTO outfile VALUES (1)": 0,
		"INSERT INTO t FROM INFILE 'x' FORMAT CSV": 78, "SELECT * FROM infile": 0,
		"SELECT file('x')": 497, "SELECT FILE ('x')": 497, "SELECT `file`('x')": 497, "SELECT \"fi\\x6ce\"('x')": 497, "SELECT `f``ile`('x')": 0,
		"SELECT file FROM t": 0, "SELECT 'file(x)'": 0, "SELECT files('x')": 0, "SELECT count(file) FROM t": 0,
		"SELECT arrayMap(file, a)": 497, "SELECT * APPLY(file)": 497, "SELECT * APPLY file": 497, "SELECT mapApply (`file`, m)": 497,
		"INSERT INTO FUNCTION file('x') SELECT 1": 0, // the grants refuse it
	} {
		got := 0
		if e := parseStatement([]byte(text)).forbidden; e != nil {
			got = e.code
		}
		if got != code {
			t.Errorf("%q: code %d, want %d", text, got, code)
		}
	}
}

// Whatever the bytes are, the offsets stay inside the text and the data is its end.
func FuzzParseStatement(f *testing.F) {
	for _, seed := range []string{"INSERT INTO t FORMAT CSV 1", "SELECT 1 FORMAT JSON;", "INSERT INTO t VALUES ('a\\'", "$a$ $a$", "/* /* */", "`\\x6"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := parseStatement(text)
		if s.dataOffset < 0 || s.dataOffset > len(text) || s.textEnd > len(text) || s.formatAt > len(text) {
			t.Fatalf("offsets outside of %d bytes: %+v", len(text), s)
		}
		if s.hasData && !bytes.HasPrefix(text, []byte(s.head)) {
			t.Fatalf("head %q is no beginning of %q", s.head, text)
		}
	})
}

func TestValuesReader(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"(1), (2)": true, "(1);": true, "(1); \n\t": true, "('a;b')": true, "('a''; b')": true, `('a\'; b')`: true, `('\\'); `: true,
		"(1) -- ; x\n, (2)": true, "(/* ; */ 1);": true, "(`a;b`)": true, "(1 - 2, 4 / 2);": true, "": true,
		"(1); (2)": false, "(1);;": false, `('\\'); x`: false, "('a'';'); (2)": false, "(/* */ 1); (2)": false, "(1) -- x\n; (2)": false,
	} {
		for _, chunk := range []func(io.Reader) io.Reader{iotest.OneByteReader, func(r io.Reader) io.Reader { return r }} {
			got, err := io.ReadAll(&valuesReader{source: chunk(strings.NewReader(text))})
			if (err == nil) != ok || ok && string(got) != text {
				t.Errorf("%q: %q %v", text, got, err)
			}
		}
	}
}

func TestExceptionText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		code int
		body string
	}{
		"Code: 60. DB::Exception: No table. (UNKNOWN_TABLE)": {60, "Code: 60. DB::Exception: No table. (UNKNOWN_TABLE) (version 1.2)\n"},
		"Code: 73. DB::Exception: Code: 73. DB::Exception: Code: 73. DB::Exception: No. (UNKNOWN_FORMAT) (version 1.2). (UNKNOWN_FORMAT) (version 1.2). (UNKNOWN_FORMAT)": {
			73, "Code: 73. DB::Exception: No. (UNKNOWN_FORMAT) (version 1.2)\n",
		},
		"Error: std::bad_alloc": {1001, "Code: 1001. DB::Exception: std::bad_alloc. (STD_EXCEPTION) (version 1.2)\n"},
	} {
		e := newException(text)
		if body := e.body("1.2"); e.code != want.code || body != want.body {
			t.Errorf("%q: %d %q", text, e.code, body)
		}
	}
}
