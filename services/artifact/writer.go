package artifact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gocloud.dev/blob"
)

// A bucket takes a large object in at most 10 000 pieces (S3), each of which lies in memory while it is sent: so a piece is as small
// as the object allows.
const (
	smallestPiece = 5 << 20
	largestPiece  = 64 << 20
	mostPieces    = 9_000
	piecesAtATime = 2
)

// Writer makes one object. Close or Abort it.
type Writer struct {
	store  *Store
	key    string
	blob   *blob.Writer
	file   *os.File // Of a file store.
	cancel context.CancelFunc
}

// Create begins an object. size is about how large it gets, in bytes; it may be wrong. Nobody sees the object before Close has
// succeeded.
func (s *Store) Create(ctx context.Context, key string, size uint64) (*Writer, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &Writer{store: s, key: key, cancel: cancel}
	o := &blob.WriterOptions{
		ContentType: "application/octet-stream", MaxConcurrency: piecesAtATime,
		BufferSize: int(min(largestPiece, max(smallestPiece, size/mostPieces))),
	}
	if s.folder != "" {
		o.BeforeWrite = func(as func(any) bool) error { as(&w.file); return nil }
	}
	var err error
	if w.blob, err = s.bucket.NewWriter(ctx, key, o); err != nil {
		cancel()
		return nil, fmt.Errorf("write artifact %s: %w", key, err)
	}
	return w, nil
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.blob.Write(p)
	if err != nil {
		err = fmt.Errorf("write artifact %s: %w", w.key, err)
	}
	return n, err
}

// Close makes the object seen. When it fails there is no new object, or, when the answer was lost, the whole one.
func (w *Writer) Close() error {
	defer w.cancel()
	var synced error
	if w.file != nil {
		if synced = w.file.Sync(); synced != nil {
			w.cancel() // A file that may not be on the disk must not get its name.
		}
	}
	err := w.blob.Close()
	if err == nil && w.file != nil {
		err = syncFolder(filepath.Dir(filepath.Join(w.store.folder, filepath.FromSlash(w.key))))
	}
	if err = errors.Join(synced, err); err != nil {
		return fmt.Errorf("write artifact %s: %w", w.key, err)
	}
	return nil
}

// Abort gives the object up.
func (w *Writer) Abort() {
	w.cancel()
	_ = w.blob.Close() // It fails because it was cancelled.
}

func syncFolder(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
