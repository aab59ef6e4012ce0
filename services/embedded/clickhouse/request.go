package clickhouse

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// headSize is how far into a request an INSERT may reach before its data begins, in bytes; ClickHouse's default of
	// max_query_size is a quarter of it.
	headSize = 1 << 20
	// maxStatement bounds a statement without data, in bytes, whatever max_query_size says.
	maxStatement = 64 << 20
	// maxValue is ClickHouse's default of http_max_field_value_size: how long the value of a URL parameter may be as it stands in the
	// URL, in bytes.
	maxValue = 128 << 10
)

// request is one query as it came over HTTP.
type request struct {
	http       *http.Request
	params     url.Values
	parameters map[string]string // query parameters, by name without param_
	settings   []setting         // sorted by name
	tables     []externalTable

	queryID       string
	database      string
	defaultFormat string
	readOnly      bool // GET and HEAD change nothing

	input   *bufio.Reader // the query of the URL and the body after it
	closers []func()
}

type setting struct{ name, value string }

// reservedParams are the parameters of the HTTP interface itself. Every other one is a setting.
// https://clickhouse.com/docs/interfaces/http
var reservedParams = map[string]bool{
	"query": true, "query_id": true, "database": true, "default_format": true, "user": true, "password": true,
	"quota_key": true, "role": true, "stacktrace": true, "session_id": true, "session_timeout": true,
	"session_check": true, "close_session": true, "compress": true, "decompress": true, "buffer_size": true,
	"wait_end_of_query": true, "client_protocol_version": true,
}

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func newRequest(r *http.Request) (*request, error) {
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if _, value, _ := strings.Cut(pair, "="); len(value) > maxValue {
			return nil, raise(codePocoException, "POCO_EXCEPTION", "HTML Form Exception: Field value too long")
		}
	}
	// Go refuses a bare semicolon in a query string, ClickHouse's clients may send one that ends a statement.
	params, err := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "%3B"))
	if err != nil {
		return nil, raise(codeBadArguments, "BAD_ARGUMENTS", "Cannot parse the URL parameters: %s", err)
	}
	q := &request{http: r, params: params, readOnly: r.Method == http.MethodGet || r.Method == http.MethodHead}
	q.queryID = first(params.Get("query_id"), r.Header.Get("X-ClickHouse-Query-Id"), newQueryID())
	q.database = first(params.Get("database"), r.Header.Get("X-ClickHouse-Database"))
	q.defaultFormat = first(params.Get("default_format"), r.Header.Get("X-ClickHouse-Format"), "TabSeparated")

	body, closer, err := decodeBody(r.Body, r.Header.Get("Content-Encoding"), params)
	if err != nil {
		return nil, err
	}
	q.closers = append(q.closers, closer)
	query := params.Get("query")
	if isMultipart(r) {
		if err := q.readMultipart(body, &query); err != nil {
			q.close()
			return nil, err
		}
		body = strings.NewReader("")
	}
	if query != "" {
		body = io.MultiReader(strings.NewReader(query+"\n"), body)
	}
	q.input = bufio.NewReaderSize(body, headSize)
	if err := q.sortParams(); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *request) close() {
	for _, closer := range q.closers {
		closer()
	}
}

// sortParams tells query parameters from settings.
func (q *request) sortParams() error {
	q.parameters = map[string]string{}
	for name, values := range q.params {
		if reservedParams[name] || q.isTableParam(name) {
			continue
		}
		if param, ok := strings.CutPrefix(name, "param_"); ok {
			q.parameters[param] = values[0]
			continue
		}
		if !settingName.MatchString(name) {
			return raise(codeUnknownSetting, "UNKNOWN_SETTING", "Unknown setting '%s'", name)
		}
		switch {
		case name == "async_insert" || name == "wait_for_async_insert":
			continue // an answer always means stored, which is the most that the two can ask for
		case name == markSetting:
			return raise(codeNotImplemented, "NOT_IMPLEMENTED", "The setting %s is not available in the embedded engine", name)
		case name == "dialect" && values[0] != "clickhouse":
			return raise(codeNotImplemented, "NOT_IMPLEMENTED", "The embedded engine speaks the ClickHouse dialect only")
		case name == "readonly" && q.readOnly && values[0] == "0":
			continue
		}
		q.settings = append(q.settings, setting{name, values[0]})
	}
	slices.SortFunc(q.settings, func(a, b setting) int { return strings.Compare(a.name, b.name) })
	return nil
}

// setting is the value that the request gives to a setting, or fallback.
func (q *request) setting(name, fallback string) string {
	for _, s := range q.settings {
		if s.name == name {
			return s.value
		}
	}
	return fallback
}

func (q *request) level() int {
	level, _ := strconv.Atoi(q.setting("http_zlib_compression_level", "0"))
	return level
}

// statement looks at the beginning of the input. Of an INSERT with data it leaves the input at the data; of anything
// else it returns the whole text.
func (q *request) statement() (statement, string, error) {
	head, err := q.input.Peek(headSize)
	complete := errors.Is(err, io.EOF)
	if err != nil && !complete {
		return statement{}, "", q.inputError(err)
	}
	s := parseStatement(head)
	if s.forbidden != nil {
		return s, "", s.forbidden
	}
	if s.hasData {
		_, err := q.input.Discard(s.dataOffset)
		return s, "", err
	}
	if complete {
		return s, string(head), nil
	}
	text, err := io.ReadAll(io.LimitReader(q.input, maxStatement+1))
	switch {
	case err != nil:
		return s, "", q.inputError(err)
	case len(text) > maxStatement:
		return s, "", raise(codeSyntaxError, "SYNTAX_ERROR", "Syntax error: the query is larger than %d bytes and brings no data", maxStatement)
	}
	s = parseStatement(text)
	switch {
	case s.forbidden != nil:
		return s, "", s.forbidden
	case s.hasData:
		return s, "", raise(codeSyntaxError, "SYNTAX_ERROR", "Syntax error: the data of an INSERT has to begin within the first %d bytes", headSize)
	}
	return s, string(text), nil
}

// inputError tells an input that the client cut short or broke from one that it compressed wrongly.
func (q *request) inputError(err error) error {
	var e *exception
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, io.ErrUnexpectedEOF), q.http.Context().Err() != nil:
		return raise(codeCannotReadAllData, "CANNOT_READ_ALL_DATA", "Cannot read all data: the request ended before its body did")
	case q.http.Header.Get("Content-Encoding") != "" || q.params.Get("decompress") == "1":
		return raise(codeCannotDecompress, "CANNOT_DECOMPRESS", "Cannot decompress the request: %s", err)
	default:
		return raise(codeNetworkError, "NETWORK_ERROR", "Cannot read the request: %s", err)
	}
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// isHello recognises the question that clickhouse-go asks first, see hello.go.
func isHello(text string) bool {
	return bytes.Equal(bytes.TrimRight([]byte(text), "; \n"), []byte(helloQuery))
}
