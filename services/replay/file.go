package replay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
)

// A file of facts has one CloudEvent in JSON (structured mode, payload in data_base64) per line, with the extension
// receivedtime: the time at the broker, which the fold uses where a producer gave none. Names that end in .parquet have the same as
// columns.

// lineBytes bounds a line: a payload as large as a record may be, in base64, and room for the attributes.
const lineBytes = events.MaxRecordBytes/3*4 + 1<<20

// cloudEvent is a line.
type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Subject         string    `json:"subject"`
	Time            time.Time `json:"time,omitzero"`
	Attempt         uint32    `json:"attempt"`
	Sequence        string    `json:"sequence"`
	PartitionKey    string    `json:"partitionkey"`
	Traceparent     string    `json:"traceparent,omitempty"`
	ReceivedTime    time.Time `json:"receivedtime,omitzero"`
	DataContentType string    `json:"datacontenttype"`
	Data            []byte    `json:"data_base64"`
}

// Writer writes facts to a file.
type Writer interface {
	Write(Fact) error
	// Close ends the file; without it the file is not whole.
	Close() error
}

// NewWriter writes to w in the format that the name's ending says: .parquet, else a line of JSON per fact.
func NewWriter(w io.Writer, name string) Writer {
	if isParquet(name) {
		return newParquetWriter(w)
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	return &lineWriter{buffered, json.NewEncoder(buffered)}
}

func isParquet(name string) bool { return strings.EqualFold(filepath.Ext(name), ".parquet") }

type lineWriter struct {
	*bufio.Writer
	encoder *json.Encoder
}

func (l *lineWriter) Write(f Fact) error {
	e := f.Event
	return l.encoder.Encode(cloudEvent{
		SpecVersion: "1.0", ID: e.ID, Source: e.Source, Type: e.Type, Subject: e.Subject, Time: e.Time, Attempt: e.Attempt,
		Sequence: fmt.Sprintf("%020d", e.Sequence), PartitionKey: e.Subject, Traceparent: e.Traceparent, ReceivedTime: f.ReceivedAt,
		DataContentType: e.ContentType, Data: e.Payload,
	})
}

func (l *lineWriter) Close() error { return l.Flush() }

// File reads what a Writer wrote.
func File(path string) Source {
	if isParquet(path) {
		return &parquetFile{path: path}
	}
	return &lines{path: path}
}

// lines reads a file of CloudEvents, a line each.
type lines struct {
	path string
	at   int64 // bytes
}

func (l *lines) Name() string { return "file " + l.path }

// Grouped is false: what an export wrote is, but anybody may write such a file.
func (l *lines) Grouped() bool { return false }

func (l *lines) Total(_ context.Context, position json.RawMessage) (uint64, string, error) {
	info, err := os.Stat(l.path)
	if err != nil {
		return 0, "", err
	}
	at, err := offset(position)
	return uint64(max(0, info.Size()-at)), "bytes", err
}

func offset(position json.RawMessage) (at int64, err error) {
	if position == nil {
		return 0, nil
	}
	if err := json.Unmarshal(position, &at); err != nil {
		return 0, fmt.Errorf("read the saved position: %w", err)
	}
	return at, nil
}

func (l *lines) Facts(ctx context.Context, position json.RawMessage) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		begin, err := offset(position)
		if err == nil {
			l.at = begin
			err = l.each(ctx, func(f Fact) bool { return yield(f, nil) })
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Fact{}, err)
		}
	}
}

func (l *lines) each(ctx context.Context, yield func(Fact) bool) error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(l.at, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewScanner(file)
	in.Buffer(make([]byte, 1<<20), lineBytes)
	in.Split(wholeLines)
	for number := 1; in.Scan(); number++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		line := in.Bytes()
		if text := bytes.TrimSpace(line); len(text) > 0 {
			f, err := parse(bytes.Clone(text))
			if err != nil {
				return fmt.Errorf("%s: line at byte %d: %w", l.path, l.at, err)
			}
			l.at += int64(len(line))
			if !yield(f) {
				return errStopped
			}
			continue
		}
		l.at += int64(len(line))
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("%s: line at byte %d: %w", l.path, l.at, err)
	}
	return nil
}

// wholeLines splits into lines with their ends, so that their lengths are places in the file.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// parse reads one CloudEvent.
func parse(line []byte) (Fact, error) {
	e, err := codec.Decode(map[string]string{"content-type": "application/cloudevents+json"}, line)
	if err != nil {
		return Fact{}, err
	}
	if err := e.AboutExecution(); err != nil {
		return Fact{}, err
	}
	var received struct {
		Time time.Time `json:"receivedtime"`
	}
	if err := json.Unmarshal(line, &received); err != nil {
		return Fact{}, fmt.Errorf("receivedtime: %w", err)
	}
	return Fact{e, received.Time}, nil
}

func (l *lines) Position() (json.RawMessage, uint64) {
	at, _ := json.Marshal(l.at) // A number always can be.
	return at, uint64(l.at)
}
