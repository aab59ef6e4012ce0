package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
)

// Artifacts are the files that output is recorded in. It is safe for concurrent use; *artifact.Store is one.
type Artifacts interface {
	// Size is that of an object; artifact.ErrNotFound when there is none.
	Size(ctx context.Context, key string) (uint64, error)
	// Read opens an object from an offset on; length -1 is all of it.
	Read(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	// URI names an object in the facts.
	URI(key string) string
}

// smallOutput is what is read from the archive at once, and in one piece: the archive has it in fewer steps than a bucket.
const smallOutput = 1 << 20

// content are the bytes of a sealed output: the archive's, and the recorded file's when there are many or the archive has them no
// longer.
func (o *reading) content(ctx context.Context, parts []span) content {
	archived := newSparse(parts, func(from, to uint64) iter.Seq2[clickhouse.Chunk, error] {
		return o.g.archive.Output(ctx, o.ID, o.Attempt, o.Stream, from, to)
	})
	if archived.size > smallOutput {
		if f := o.recorded(ctx, archived.size); f != nil {
			archived.close()
			return f
		}
		return archived
	}
	small, err := io.ReadAll(archived)
	archived.close()
	if err == nil {
		return &inMemory{bytes.NewReader(small)}
	}
	if f := o.recorded(ctx, archived.size); f != nil {
		return f
	}
	return newSparse(parts, archived.open) // It fails in the same way, where that can be told.
}

// content is what is served.
type content interface {
	io.ReadSeeker
	// close gives up what is open.
	close()
	// failure is why Read failed, if it did.
	failure() error
}

type inMemory struct{ *bytes.Reader }

func (*inMemory) close()         {}
func (*inMemory) failure() error { return nil }

// recorded is the file that the output is recorded in; nil when there is none of this size. Which file that is follows from the
// execution's id alone: a URI in a fact is compared with it and never opened.
func (o *reading) recorded(ctx context.Context, size int64) *file {
	uri, recorded := o.row.StdoutLog, o.row.StdoutLogBytes
	if o.Stream == "stderr" {
		uri, recorded = o.row.StderrLog, o.row.StderrLogBytes
	}
	if o.g.d.Artifacts == nil || uri == nil || recorded == nil || *recorded != uint64(size) {
		return nil
	}
	for _, compression := range []string{artifact.Plain, artifact.Zstd} {
		key, err := artifact.Attempt{Execution: o.ID, Number: o.Attempt}.Key(o.Stream, compression)
		if err != nil || o.g.d.Artifacts.URI(key) != *uri {
			continue
		}
		stored, err := o.g.d.Artifacts.Size(ctx, key)
		if err == nil && compression == artifact.Plain && stored != uint64(size) {
			err = fmt.Errorf("it has %d bytes, the row says %d", stored, size)
		}
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				o.g.c.Logger.WarnContext(ctx, "a recorded output cannot be read, the archive is read instead", "uri", *uri, "error", err)
			}
			return nil
		}
		return &file{artifacts: o.g.d.Artifacts, ctx: ctx, key: key, compression: compression, size: size}
	}
	return nil
}

// file reads a recorded output; it is an io.ReadSeeker. What is open is a request for the rest of the object.
type file struct {
	artifacts        Artifacts
	ctx              context.Context // Of the request that it is read for.
	key, compression string
	size, pos        int64

	from   io.ReadCloser
	expand *zstd.Decoder
	err    error
}

// Seek implements io.Seeker.
func (f *file) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	if offset != f.pos {
		f.close()
	}
	f.pos = offset
	return offset, nil
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if f.pos >= f.size {
		return 0, io.EOF
	}
	if f.from == nil {
		if f.err = f.begin(); f.err != nil {
			return 0, f.err
		}
	}
	in := io.Reader(f.from)
	if f.expand != nil {
		in = f.expand
	}
	n, err := in.Read(p[:min(int64(len(p)), f.size-f.pos)])
	f.pos += int64(n)
	if err != nil && (!errors.Is(err, io.EOF) || f.pos < f.size) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		f.err = fmt.Errorf("read recorded output %s at %d: %w", f.key, f.pos, err)
		err = f.err
	}
	return n, err
}

// begin opens the object where pos is. A compressed one is read from its beginning.
func (f *file) begin() (err error) {
	if f.compression == artifact.Plain {
		f.from, err = f.artifacts.Read(f.ctx, f.key, f.pos, -1)
		return err
	}
	if f.from, err = f.artifacts.Read(f.ctx, f.key, 0, -1); err != nil {
		return err
	}
	if f.expand, err = zstd.NewReader(f.from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20)); err != nil {
		return fmt.Errorf("read recorded output %s: %w", f.key, err)
	}
	if _, err := io.CopyN(io.Discard, f.expand, f.pos); err != nil {
		return fmt.Errorf("read recorded output %s: %w", f.key, err)
	}
	return nil
}

func (f *file) close() {
	if f.expand != nil {
		f.expand.Close()
	}
	if f.from != nil {
		f.from.Close()
	}
	f.from, f.expand = nil, nil
}

func (f *file) failure() error { return f.err }
