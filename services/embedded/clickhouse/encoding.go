package clickhouse

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// decodeMemory bounds the window of a compressed request, in bytes: 128 MiB is what zstd's --long=27 needs.
const decodeMemory = 128 << 20

// decodeBody undoes the request's Content-Encoding and then ClickHouse's own block compression (decompress=1).
func decodeBody(raw io.Reader, encoding string, params url.Values) (io.Reader, func(), error) {
	body, closer := raw, func() {}
	switch strings.ToLower(encoding) {
	case "", "identity":
	case "gzip", "x-gzip":
		body = &lazyReader{open: func() (io.Reader, error) { return gzip.NewReader(raw) }}
	case "deflate":
		body = &lazyReader{open: func() (io.Reader, error) { return zlib.NewReader(raw) }}
	case "br":
		body = brotli.NewReader(raw)
	case "lz4":
		body = lz4.NewReader(raw)
	case "zstd":
		decoder, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(decodeMemory))
		if err != nil {
			return nil, nil, fmt.Errorf("decode the request: %w", err)
		}
		body, closer = decoder, decoder.Close
	default:
		return nil, nil, raise(codeNotImplemented, "NOT_IMPLEMENTED", "Unknown compression method: %s", encoding)
	}
	if params.Get("decompress") == "1" {
		body = blockReader{compress.NewReader(body)}
	}
	return body, closer, nil
}

// lazyReader opens its source at the first read, so that a broken header is an error of the body like any other.
type lazyReader struct {
	open   func() (io.Reader, error)
	source io.Reader
}

func (r *lazyReader) Read(p []byte) (int, error) {
	if r.source == nil {
		source, err := r.open()
		if err != nil {
			return 0, err
		}
		r.source = source
	}
	return r.source.Read(p)
}

// blockReader reads ClickHouse's block compression and ends cleanly at the end of a block.
type blockReader struct{ source *compress.Reader }

func (r blockReader) Read(p []byte) (int, error) {
	n, err := r.source.Read(p)
	switch {
	case !errors.Is(err, io.EOF):
	case strings.Contains(err.Error(), "read raw"): // the end right after a header, where a block was announced
		err = io.ErrUnexpectedEOF
	default: // the end where a header would stand is the end of the body; the package wraps it
		err = io.EOF
	}
	return n, err
}

// encoder is a compressor of an answer. Close ends the compressed stream and leaves what is below it open.
type encoder interface {
	io.WriteCloser
	Flush() error
}

// replyEncoding is the Content-Encoding of the answer: the one the server prefers of those that the client accepts.
// https://clickhouse.com/docs/interfaces/http#compression
func replyEncoding(accept string) string {
	accepted := map[string]bool{}
	for part := range strings.SplitSeq(accept, ",") {
		name, quality, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.ReplaceAll(quality, " ", "") != "q=0" {
			accepted[strings.ToLower(strings.TrimSpace(name))] = true
		}
	}
	for _, name := range []string{"br", "gzip", "deflate", "zstd", "lz4"} {
		if accepted[name] {
			return name
		}
	}
	return ""
}

// defaultZlibLevel is the default of http_zlib_compression_level.
const defaultZlibLevel = 3

func newEncoder(w io.Writer, encoding string, level int) (encoder, error) {
	if level < 1 || level > 9 {
		level = defaultZlibLevel
	}
	switch encoding {
	case "gzip":
		return gzip.NewWriterLevel(w, level)
	case "deflate":
		return zlib.NewWriterLevel(w, level)
	case "br":
		return brotli.NewWriterLevel(w, level), nil
	case "zstd":
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)))
	case "lz4":
		return lz4.NewWriter(w), nil
	default:
		return nil, fmt.Errorf("encoding %q is unknown", encoding)
	}
}

// blockSize is the size of a block before compression, in bytes; ClickHouse's DBMS_DEFAULT_BUFFER_SIZE.
const blockSize = 1 << 20

// blockWriter writes ClickHouse's block compression (compress=1).
type blockWriter struct {
	out    io.Writer
	packer *compress.Writer
	buf    []byte
}

func newBlockWriter(w io.Writer, params url.Values) (*blockWriter, error) {
	level, _ := strconv.Atoi(params.Get("network_zstd_compression_level"))
	method := compress.LZ4
	switch name := strings.ToUpper(params.Get("network_compression_method")); name {
	case "", "LZ4":
	case "LZ4HC":
		method = compress.LZ4HC
	case "ZSTD":
		method = compress.ZSTD
	case "NONE":
		method = compress.None
	default:
		return nil, raise(codeUnknownCompression, "UNKNOWN_COMPRESSION_METHOD", "Unknown compression method: %s", name)
	}
	return &blockWriter{out: w, packer: compress.NewWriter(compress.Level(max(level, 0)), method)}, nil
}

func (w *blockWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(len(p), blockSize-len(w.buf))
		w.buf, p = append(w.buf, p[:n]...), p[n:]
		if len(w.buf) == blockSize {
			if err := w.Flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (w *blockWriter) Flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if err := w.packer.Compress(w.buf); err != nil {
		return fmt.Errorf("compress a block: %w", err)
	}
	w.buf = w.buf[:0]
	_, err := w.out.Write(w.packer.Data)
	return err
}

// writePlain writes p in a block of its own that is not compressed. Readers take it like any other, and whoever looks
// at the raw bytes, as clickhouse-go does for an exception, can read it.
func (w *blockWriter) writePlain(p []byte) error {
	if err := w.Flush(); err != nil {
		return err
	}
	packer := w.packer
	w.packer, w.buf = compress.NewWriter(0, compress.None), append(w.buf, p...)
	err := w.Flush()
	w.packer = packer
	return err
}

func (w *blockWriter) Close() error { return w.Flush() }
