package clickhouse

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// serveQuery answers one query. Everything that can go wrong ends in reply.finish, which says so to the client.
func (s *Server) serveQuery(w http.ResponseWriter, r *http.Request) {
	reply := newReply(w, s)
	q, err := newRequest(r)
	if err != nil {
		reply.finish(err)
		return
	}
	defer q.close()
	reply.accept(q)
	if err := authenticate(r, q.params); err != nil {
		reply.finish(err)
		return
	}
	select {
	case s.running <- struct{}{}:
		defer func() { <-s.running }()
	case <-r.Context().Done():
		reply.finish(raise(codeQueryWasCancelled, "QUERY_WAS_CANCELLED", "Query was cancelled while it waited for its turn"))
		return
	}
	reply.finish(s.runRequest(r.Context(), q, reply))
}

// runRequest takes a connection for the query, of its session or of its own, and runs it there.
func (s *Server) runRequest(ctx context.Context, q *request, reply *reply) (err error) {
	var c *conn
	mark := newMark()
	if q.params.Has("session_id") {
		var release func()
		if c, release, err = s.sessions.acquire(q.params); err != nil {
			return err
		}
		defer release()
		var restore func() error
		if restore, err = q.enterSession(c); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, restore()) }()
	} else {
		if c, err = s.engine.connect(); err != nil {
			return err
		}
		defer c.close()
	}
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	return s.engine.guarded(ctx, mark, func() error {
		if err := q.prepare(c, mark); err != nil {
			return err
		}
		return s.runStatement(ctx, c, q, reply, giveUp)
	})
}

// prepare gives the connection the request's database, settings and external tables. All settings go in one SET,
// because readonly forbids a later one.
func (q *request) prepare(c *conn, mark string) error {
	if q.database != "" {
		if err := c.exec("USE " + quoteIdentifier(q.database)); err != nil {
			return err
		}
	}
	if err := q.createTables(c); err != nil {
		return err
	}
	var set strings.Builder
	set.WriteString("SET " + markSetting + " = " + quoteString(mark))
	readonly := q.readOnly && !q.params.Has("session_id")
	for _, s := range q.settings {
		if !q.engineSetting(s.name) {
			continue
		}
		readonly = readonly && s.name != "readonly"
		set.WriteString(", " + s.name + " = " + quoteString(s.value))
	}
	if readonly {
		set.WriteString(", readonly = '2'")
	}
	return c.exec(set.String())
}

// engineSetting says whether a setting goes to the engine with SET. In a session readonly does not: it could not be
// taken back.
func (q *request) engineSetting(name string) bool {
	return name != "readonly" || !q.params.Has("session_id")
}

// runStatement runs the statement of the request in the way that fits its kind.
func (s *Server) runStatement(ctx context.Context, c *conn, q *request, reply *reply, giveUp func()) error {
	st, text, err := q.statement()
	if err != nil {
		return err
	}
	if st.hasData {
		return q.runInsert(c, st, reply)
	}
	if isHello(text) && q.defaultFormat == "Native" {
		return s.runHello(q, reply)
	}
	what, err := c.classify(text)
	if err != nil {
		return err
	}
	if q.sessionReadOnly() && what.class != classReadOnly {
		return raise(codeReadonly, "READONLY", "default: Cannot execute query in readonly mode")
	}
	if st.fromInput && st.verb == "INSERT" {
		return raise(codeNotImplemented, "NOT_IMPLEMENTED", "INSERT … SELECT … FROM input() is not supported by the embedded engine")
	}
	format := first(st.format, q.defaultFormat)
	reply.format = format
	// Text that is not exactly one statement goes through the streaming door, which refuses it before anything runs;
	// the other door would run the first statements of several.
	single := what.statementCount == 1
	if !single || streamable(q, st, format) {
		err := s.runStream(ctx, c, q, text, format, reply)
		if err == nil || !single || !notStreamable(err) {
			return err
		}
	}
	if selects(st) {
		return runPiped(c, q, st, text, format, reply, giveUp)
	}
	return runWhole(c, q, text, format, reply)
}

// sessionReadOnly says that a request in a session may only read. Elsewhere the setting readonly sees to it.
func (q *request) sessionReadOnly() bool {
	if !q.params.Has("session_id") {
		return false
	}
	level := q.setting("readonly", "0")
	return q.readOnly || level != "0"
}

// chainFormats are formats in which the output of two queries, one after the other, is the output of both: without
// header, footer and separators. The engine's stream starts the format anew for each piece, so only these can be
// streamed. An answer in another one, JSON and Parquet among them, comes through a pipe.
var chainFormats = map[string]bool{
	"native": true, "tabseparated": true, "tsv": true, "tabseparatedraw": true, "tsvraw": true, "csv": true,
	"tskv": true, "rowbinary": true, "jsoneachrow": true, "jsonlines": true, "ndjson": true,
	"jsonstringseachrow": true, "jsoncompacteachrow": true, "jsoncompactstringseachrow": true, "lineasstring": true,
	"rawblob": true, "msgpack": true, "null": true,
}

// selects says that a statement is a SELECT by its looks.
func selects(s statement) bool { return s.verb == "SELECT" || s.verb == "WITH" || s.verb == "FROM" }

func streamable(q *request, s statement, format string) bool {
	return selects(s) && chainFormats[strings.ToLower(format)] && !s.totals &&
		q.setting("extremes", "0") == "0" && q.setting("output_format_json_array_of_rows", "0") == "0"
}

// notStreamable recognises the refusal of a statement that is no SELECT after all. It comes before anything has run.
func notStreamable(err error) bool {
	e := asException(err)
	return e.code == codeBadArguments && strings.Contains(e.message, "Streaming query is not supported for query")
}

func (s *Server) runStream(ctx context.Context, c *conn, q *request, text, format string, reply *reply) error {
	return c.stream(text, format, q.parameters, func(piece []byte, st stats) error {
		if err := ctx.Err(); err != nil {
			return raise(codeQueryWasCancelled, "QUERY_WAS_CANCELLED", "Query was cancelled")
		}
		reply.stats.add(st)
		_, err := reply.Write(piece)
		return err
	})
}

func runWhole(c *conn, q *request, text, format string, reply *reply) error {
	r, err := c.query(text, format, q.parameters)
	defer r.free()
	if err != nil {
		return err
	}
	reply.stats.add(r.stats())
	return reply.whole(r.bytes())
}

func (s *Server) runHello(q *request, reply *reply) error {
	revision, _ := strconv.ParseUint(q.params.Get("client_protocol_version"), 10, 32)
	block, err := hello(revision, s.engine.version, s.engine.zone)
	if err != nil {
		return err
	}
	reply.format = "Native"
	return reply.whole(block)
}

// runInsert feeds the rest of the request to the engine as it arrives. Nothing but one piece is held here.
func (q *request) runInsert(c *conn, st statement, reply *reply) error {
	if q.sessionReadOnly() {
		return raise(codeReadonly, "READONLY", "default: Cannot execute query in readonly mode")
	}
	if !settingName.MatchString(st.format) {
		return raise(codeUnknownFormat, "UNKNOWN_FORMAT", "Unknown format %s", st.format)
	}
	stream, err := c.insert(st.head, st.format, q.parameters)
	if err != nil {
		return err
	}
	var data io.Reader = q.input
	if strings.EqualFold(st.format, "Values") {
		data = &valuesReader{source: data}
	}
	written, err := q.feed(stream, data)
	reply.stats.add(written)
	return err
}

// pieceSize is how much of an INSERT is handed to the engine at once, in bytes.
const pieceSize = 1 << 20

// feed moves data into the insert and ends it. A body that breaks off cancels the insert: what was sent of it may be a
// valid beginning, and half a request must not look like a whole one.
func (q *request) feed(stream *insertStream, data io.Reader) (stats, error) {
	piece := make([]byte, pieceSize)
	for {
		n, err := data.Read(piece)
		if stream.append(piece[:n]) != nil {
			return stream.finish() // tells what the engine found wrong
		}
		switch {
		case errors.Is(err, io.EOF):
			return stream.finish()
		case err != nil:
			stream.cancel()
			return stats{}, q.inputError(err)
		}
	}
}

// enterSession remembers what the request is about to change in the session for its own duration only, and returns the
// way back.
func (q *request) enterSession(c *conn) (func() error, error) {
	database, err := c.value("SELECT currentDatabase()")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range q.settings {
		if q.engineSetting(s.name) {
			names = append(names, s.name)
		}
	}
	back := make([]string, 0, len(names))
	for _, name := range names {
		value, err := c.value("SELECT if(changed, value, '') FROM system.settings WHERE name = " + quoteString(name))
		switch {
		case err != nil:
			return nil, err
		case value == "":
			back = append(back, name+" = DEFAULT")
		default:
			back = append(back, name+" = "+quoteString(value))
		}
	}
	return func() error {
		if q.database != "" {
			if err := c.exec("USE " + quoteIdentifier(database)); err != nil {
				return err
			}
		}
		if len(back) == 0 {
			return nil
		}
		return c.exec("SET " + strings.Join(back, ", "))
	}, nil
}
