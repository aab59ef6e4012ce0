package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
)

// row is a fact in a Parquet file. Times are nanoseconds since 1970 in UTC; absent when not known.
type row struct {
	ExecutionID string     `parquet:"execution_id,dict,zstd"`
	Attempt     uint32     `parquet:"attempt,zstd"`
	Source      string     `parquet:"source,dict,zstd"`
	Sequence    uint64     `parquet:"sequence,delta,zstd"`
	ID          string     `parquet:"id,zstd"`
	Type        string     `parquet:"type,dict,zstd"`
	Time        *time.Time `parquet:"time,optional,timestamp(nanosecond),zstd"`
	ReceivedAt  *time.Time `parquet:"received_at,optional,timestamp(nanosecond),zstd"`
	Traceparent string     `parquet:"traceparent,dict,zstd"`
	ContentType string     `parquet:"content_type,dict,zstd"`
	Payload     []byte     `parquet:"payload,zstd"`
}

const (
	// groupBytes of payload make a row group, which a writer holds in memory.
	groupBytes = 16 << 20
	// readRows are read at once.
	readRows = 64
)

type parquetWriter struct {
	*parquet.GenericWriter[row]
	bytes int
}

func newParquetWriter(w io.Writer) Writer {
	return &parquetWriter{GenericWriter: parquet.NewGenericWriter[row](w)}
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (p *parquetWriter) Write(f Fact) error {
	e := f.Event
	_, err := p.GenericWriter.Write([]row{{
		ExecutionID: e.Subject, Attempt: e.Attempt, Source: e.Source, Sequence: e.Sequence, ID: e.ID, Type: e.Type,
		Time: known(e.Time), ReceivedAt: known(f.ReceivedAt), Traceparent: e.Traceparent, ContentType: e.ContentType, Payload: e.Payload,
	}})
	if p.bytes += len(e.Payload) + 256; err == nil && p.bytes >= groupBytes {
		p.bytes, err = 0, p.Flush()
	}
	return err
}

// parquetFile reads a Parquet file; its position is a number of rows.
type parquetFile struct {
	path string
	at   int64
}

func (p *parquetFile) Name() string { return "file " + p.path }

func (p *parquetFile) Grouped() bool { return false }

func (p *parquetFile) open() (*os.File, *parquet.GenericReader[row], error) {
	file, err := os.Open(p.path)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	f, err := parquet.OpenFile(file, info.Size())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s is no Parquet file: %w", p.path, err), file.Close())
	}
	want := parquet.SchemaOf(row{})
	for _, column := range want.Columns() {
		if _, ok := f.Schema().Lookup(column...); !ok {
			return nil, nil, errors.Join(fmt.Errorf("%s has no column %s: it is not what \"verbatim export\" writes", p.path, column[0]), file.Close())
		}
	}
	if err := safe(f.Metadata()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", p.path, err), file.Close())
	}
	return file, parquet.NewGenericReader[row](f), nil
}

// safe refuses a file that the library cannot be trusted with. On damaged data its LZ4 decoder does not end.
func safe(m *format.FileMetaData) error {
	for _, group := range m.RowGroups {
		for _, column := range group.Columns {
			switch codec := column.MetaData.Codec; codec {
			case format.Uncompressed, format.Snappy, format.Gzip, format.Zstd:
			default:
				return fmt.Errorf("column %v is compressed with %v: ZSTD, GZIP, SNAPPY and no compression are read", column.MetaData.PathInSchema, codec)
			}
		}
	}
	return nil
}

// guard turns the library's panics on a damaged file into errors.
func (p *parquetFile) guard(call func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s is damaged: %v", p.path, v)
		}
	}()
	return call()
}

func (p *parquetFile) Total(_ context.Context, position json.RawMessage) (uint64, string, error) {
	at, err := offset(position)
	if err != nil {
		return 0, "", err
	}
	n := int64(0)
	err = p.guard(func() error {
		file, reader, err := p.open()
		if err != nil {
			return err
		}
		n = reader.NumRows()
		return errors.Join(reader.Close(), file.Close())
	})
	return uint64(max(0, n-at)), "facts", err
}

func (p *parquetFile) Facts(ctx context.Context, position json.RawMessage) iter.Seq2[Fact, error] {
	return func(yield func(Fact, error) bool) {
		begin, err := offset(position)
		if err == nil {
			p.at = begin
			err = p.each(ctx, func(f Fact) bool { return yield(f, nil) })
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Fact{}, err)
		}
	}
}

func (p *parquetFile) each(ctx context.Context, yield func(Fact) bool) error {
	var file *os.File
	var reader *parquet.GenericReader[row]
	err := p.guard(func() (err error) {
		if file, reader, err = p.open(); err != nil {
			return err
		}
		return reader.SeekToRow(p.at)
	})
	if file != nil {
		defer file.Close()
	}
	if err != nil {
		return fmt.Errorf("%s: go to row %d: %w", p.path, p.at, err)
	}
	defer func() { _ = p.guard(reader.Close) }()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rows := make([]row, readRows)
		n := 0
		err := p.guard(func() (err error) {
			n, err = reader.Read(rows)
			return err
		})
		for _, r := range rows[:n] {
			f, err := r.fact()
			if err != nil {
				return fmt.Errorf("%s: row %d: %w", p.path, p.at, err)
			}
			p.at++
			if !yield(f) {
				return errStopped
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && n == 0 {
			err = errors.New("nothing can be read where there should be more")
		}
		if err != nil {
			return fmt.Errorf("%s: row %d: %w", p.path, p.at, err)
		}
	}
}

// fact goes the way of a record, so that it is checked like one.
func (r row) fact() (Fact, error) {
	e := events.Event{
		ID: r.ID, Source: r.Source, Type: r.Type, Subject: r.ExecutionID, Attempt: r.Attempt, Sequence: r.Sequence,
		Traceparent: r.Traceparent, ContentType: r.ContentType, Payload: r.Payload,
	}
	if r.Time != nil {
		e.Time = r.Time.UTC()
	}
	headers, value, err := codec.Encode(e)
	if err != nil {
		return Fact{}, err
	}
	if e, err = codec.Decode(headers, value); err != nil {
		return Fact{}, err
	}
	if err := e.AboutExecution(); err != nil {
		return Fact{}, err
	}
	f := Fact{Event: e}
	if r.ReceivedAt != nil {
		f.ReceivedAt = r.ReceivedAt.UTC()
	}
	return f, nil
}

func (p *parquetFile) Position() (json.RawMessage, uint64) {
	at, _ := json.Marshal(p.at) // A number always can be.
	return at, uint64(p.at)
}
