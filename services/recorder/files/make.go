package files

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
)

// maxLeftOut is how many ranges an Artifact lists.
const maxLeftOut = 1024

// streams are the streams by name.
var streams = map[string]executionv1.Stream{
	events.StreamName(executionv1.Stream_STREAM_STDOUT): executionv1.Stream_STREAM_STDOUT,
	events.StreamName(executionv1.Stream_STREAM_STDERR): executionv1.Stream_STREAM_STDERR,
}

// make writes the artifact of one stream. What is in memory of it is a page of the archive and the pieces on their way.
func (r *Recorder) make(ctx context.Context, a *attempt, stream string, seals []*executionv1.OutputSealed) (f *executionv1.Artifact, err error) {
	key, err := artifact.Attempt{Execution: a.name.ID, Number: a.name.Number}.Key(stream, r.Compression)
	if err != nil {
		return nil, err
	}
	seal := sealOf(seals, stream)
	w, err := r.Store.Create(ctx, key, seal.GetPublishedBytes())
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			w.Abort()
		}
	}()
	out, err := compress(w, r.Compression)
	if err != nil {
		return nil, err
	}
	t := newTally(seal)
	for c, err := range r.Archive.Output(ctx, a.name.ID, a.name.Number, stream, 0, 0) {
		if err != nil {
			return nil, err
		}
		t.add(c)
		if _, err := out.Write(c.Data); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, fmt.Errorf("compress %s: %w", key, err)
	}
	closed = true
	if err := w.Close(); err != nil {
		return nil, err
	}
	r.metrics.bytes.Add(float64(t.size))
	f = t.end()
	f.Stream, f.Uri, f.Compression = streams[stream], r.Store.URI(key), r.Compression
	return f, nil
}

// compress puts a compressor before a writer, which stays open when it is closed.
func compress(w io.Writer, compression string) (io.WriteCloser, error) {
	if compression == artifact.Plain {
		return plain{w}, nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// tally counts and digests what is written.
type tally struct {
	seal  *executionv1.StreamSeal
	whole hash.Hash
	size  uint64
	// at is the position in the stream.
	at uint64
	// sealed is the digest of what lies below the seal's end, once something came from behind it.
	sealed  []byte
	left    []*executionv1.ByteRange
	leftSum uint64
}

func newTally(seal *executionv1.StreamSeal) *tally { return &tally{seal: seal, whole: sha256.New()} }

func (t *tally) add(c clickhouse.Chunk) {
	t.gap(c.Offset)
	data := c.Data
	if end := t.seal.GetCapturedBytes(); t.seal != nil && t.sealed == nil && c.Offset+uint64(len(data)) > end {
		below := data[:end-min(end, c.Offset)]
		t.whole.Write(below)
		t.sealed = t.whole.Sum(nil)
		data = data[len(below):]
	}
	t.whole.Write(data)
	t.size += uint64(len(c.Data))
	t.at = c.Offset + uint64(len(c.Data))
}

// gap notes that nothing is there up to an offset.
func (t *tally) gap(offset uint64) {
	if offset <= t.at {
		return
	}
	t.leftSum += offset - t.at
	if len(t.left) < maxLeftOut {
		t.left = append(t.left, &executionv1.ByteRange{Start: t.at, End: offset})
	}
}

func (t *tally) end() *executionv1.Artifact {
	t.gap(t.seal.GetCapturedBytes())
	sum := t.whole.Sum(nil)
	if t.sealed == nil {
		t.sealed = sum
	}
	return &executionv1.Artifact{
		SizeBytes: t.size, Sha256: sum, LeftOut: t.left, LeftOutBytes: t.leftSum, DigestCheck: check(t.seal, t.sealed),
	}
}
