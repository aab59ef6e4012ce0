package clickhouse

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// reply writes the answer of one query. The headers leave with the first byte of the result, so an error before it has
// its proper status; a later one is written into the body in the server's framing, and the connection is broken, so
// that no client takes a part for the whole.
type reply struct {
	w       http.ResponseWriter
	log     *slog.Logger
	version string
	zone    string
	spool   string
	began   time.Time
	tag     string

	q      *request // nil until the request is understood
	format string
	stats  stats

	started bool
	out     io.Writer // where results go, nil until started
	layers  []encoder // what compresses them, outermost last
	held    *os.File  // the answer that wait_end_of_query holds back
}

func newReply(w http.ResponseWriter, s *Server) *reply {
	return &reply{w: w, log: s.log, version: s.engine.version, zone: s.engine.zone, spool: s.spool, began: time.Now(), tag: rand.Text()[:16]}
}

func (r *reply) accept(q *request) {
	r.q = q
	h := r.w.Header()
	h.Set("X-ClickHouse-Query-Id", strings.Map(printable, q.queryID))
	h.Set("X-ClickHouse-Timezone", r.zone)
}

// printable drops what must not stand in a header.
func printable(c rune) rune {
	if c < ' ' || c > '~' {
		return -1
	}
	return c
}

// Write adds to the result.
func (r *reply) Write(p []byte) (int, error) {
	if err := r.start(); err != nil {
		return 0, err
	}
	n, err := r.out.Write(p)
	if err != nil {
		return n, fmt.Errorf("write the answer: %w", err)
	}
	return n, nil
}

// whole is a result that is there completely; its length can be told.
func (r *reply) whole(p []byte) error {
	if len(p) == 0 {
		return nil // finish sends the headers
	}
	if r.encoding() == "" && !r.blocks() && !r.wait() {
		r.w.Header().Set("Content-Length", strconv.Itoa(len(p)))
	}
	_, err := r.Write(p)
	return err
}

func (r *reply) wait() bool { return r.q.params.Get("wait_end_of_query") == "1" }

func (r *reply) blocks() bool { return r.q.params.Get("compress") == "1" }

func (r *reply) encoding() string {
	if r.q.setting("enable_http_compression", "1") == "0" {
		return ""
	}
	return replyEncoding(r.q.http.Header.Get("Accept-Encoding"))
}

// start sets up the way that results take. With wait_end_of_query they go to a file first.
func (r *reply) start() error {
	if r.started {
		return nil
	}
	r.started = true
	if r.wait() {
		file, err := newSpoolFile(r.spool)
		if err != nil {
			return err
		}
		r.held = file
		r.out = bufio.NewWriterSize(file, blockSize)
		return nil
	}
	r.sendHeaders()
	return r.compressTo(r.w)
}

// sendHeaders announces a result. The compression is part of the announcement.
func (r *reply) sendHeaders() {
	h := r.w.Header()
	h.Set("Content-Type", contentType(r.format))
	if r.format != "" {
		h.Set("X-ClickHouse-Format", r.format)
	}
	h.Set("X-ClickHouse-Summary", r.summary())
	h.Set("X-ClickHouse-Exception-Tag", r.tag)
	if encoding := r.encoding(); encoding != "" {
		h.Set("Content-Encoding", encoding)
		h.Add("Vary", "Accept-Encoding")
	}
	r.w.WriteHeader(http.StatusOK)
}

func (r *reply) compressTo(w io.Writer) error {
	if encoding := r.encoding(); encoding != "" {
		layer, err := newEncoder(w, encoding, r.q.level())
		if err != nil {
			return err
		}
		r.layers = append(r.layers, layer)
		w = layer
	}
	if r.blocks() {
		layer, err := newBlockWriter(w, r.q.params)
		if err != nil {
			return err
		}
		r.layers = append(r.layers, layer)
		w = layer
	}
	r.out = w
	return nil
}

// finish ends the answer, with the error that ended the query or without.
func (r *reply) finish(err error) {
	if r.held != nil {
		defer r.held.Close()
		r.started = false // nothing has left yet
		if err == nil {
			err = r.sendHeld()
		}
	}
	switch {
	case err == nil && !r.started:
		r.w.Header().Set("Content-Length", "0")
		r.sendEmpty()
	case err == nil:
		if err := r.closeLayers(); err != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
	case !r.started:
		r.fail(asException(err))
	default:
		r.breakOff(asException(err))
	}
}

func (r *reply) sendEmpty() {
	h := r.w.Header()
	h.Set("Content-Type", contentType(r.format))
	if r.format != "" {
		h.Set("X-ClickHouse-Format", r.format)
	}
	h.Set("X-ClickHouse-Summary", r.summary())
	r.w.WriteHeader(http.StatusOK)
}

// sendHeld sends an answer that was held back until its query had ended.
func (r *reply) sendHeld() error {
	if err := r.out.(*bufio.Writer).Flush(); err != nil {
		return fmt.Errorf("hold the answer back: %w", err)
	}
	if _, err := r.held.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the answer back: %w", err)
	}
	r.started = true
	r.sendHeaders()
	if err := r.compressTo(r.w); err != nil {
		return err
	}
	_, err := io.Copy(r.out, r.held)
	return err
}

func (r *reply) closeLayers() error {
	var errs []error
	for i := len(r.layers) - 1; i >= 0; i-- {
		errs = append(errs, r.layers[i].Close())
	}
	return errors.Join(errs...)
}

// fail answers with an error alone.
func (r *reply) fail(e *exception) {
	h := r.w.Header()
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("X-ClickHouse-Exception-Code", strconv.Itoa(e.code))
	if r.q != nil {
		h.Set("X-ClickHouse-Summary", r.summary())
	}
	r.w.WriteHeader(e.status())
	_, _ = io.WriteString(r.w, e.body(r.version)) // a client that has gone needs no answer
}

// breakOff writes an error after a part of the result, in the framing that src/Server/HTTP of the server uses since
// 25.11, and breaks the connection.
func (r *reply) breakOff(e *exception) {
	text := strings.TrimRight(e.body(r.version), "\n")
	frame := "\r\n__exception__\r\n" + r.tag + "\r\n" + text + "\n" + strconv.Itoa(len(text)) + " " + r.tag + "\r\n__exception__\r\n"
	// Nothing is left to say it with if this does not get through.
	switch out := r.out.(type) {
	case nil:
	case *blockWriter:
		_ = out.writePlain([]byte(frame))
	default:
		_, _ = io.WriteString(out, frame)
	}
	for i := len(r.layers) - 1; i >= 0; i-- {
		_ = r.layers[i].Flush()
	}
	_ = http.NewResponseController(r.w).Flush()
	panic(http.ErrAbortHandler)
}

// summary is X-ClickHouse-Summary. Of a streamed result it tells what was known when its first piece left.
func (r *reply) summary() string {
	return fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d","total_rows_to_read":"0","result_rows":"%d","result_bytes":"0","elapsed_ns":"%d"}`,
		r.stats.readRows, r.stats.readBytes, r.stats.writtenRows, r.stats.writtenBytes, r.stats.resultRows, time.Since(r.began).Nanoseconds())
}

// newSpoolFile makes a file that goes away with its descriptor.
func newSpoolFile(folder string) (*os.File, error) {
	file, err := os.CreateTemp(folder, "spool-*")
	if err != nil {
		return nil, fmt.Errorf("make a spool file: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("unlink a spool file: %w", err), file.Close())
	}
	return file, nil
}

// contentType follows the formats' own content types in ClickHouse's src/Processors/Formats/Impl.
func contentType(format string) string {
	f := strings.ToLower(format)
	switch {
	case strings.HasSuffix(f, "eachrow") && strings.HasPrefix(f, "json"), f == "ndjson", f == "jsonlines":
		return "application/x-ndjson; charset=UTF-8"
	case strings.HasPrefix(f, "json"):
		return "application/json; charset=UTF-8"
	case strings.HasPrefix(f, "tabseparated"), strings.HasPrefix(f, "tsv"):
		return "text/tab-separated-values; charset=UTF-8"
	case f == "csv":
		return "text/csv; charset=UTF-8; header=absent"
	case strings.HasPrefix(f, "csvwithnames"):
		return "text/csv; charset=UTF-8; header=present"
	case f == "xml":
		return "application/xml; charset=UTF-8"
	case f == "native", strings.HasPrefix(f, "rowbinary"), f == "parquet", f == "arrow", f == "arrowstream", f == "orc", f == "avro", f == "msgpack", f == "protobuf":
		return "application/octet-stream"
	default:
		return "text/plain; charset=UTF-8"
	}
}
