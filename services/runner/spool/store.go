package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// store is a stream's file. It is made when the first byte is there: many a process writes nothing to one of its streams or to both, and
// to make a file and remove it costs more than most of what else a short one needs.
type store struct {
	path string
	*os.File
}

// is reports whether there is a file.
func (f *store) is() bool { return f.File != nil }

// find opens the file if there is one.
func (f *store) find() (size uint64, at time.Time, err error) {
	f.File, err = os.OpenFile(f.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f.File = nil
		return 0, at, nil
	}
	if err != nil {
		return 0, at, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, at, errors.Join(err, f.Close())
	}
	return uint64(info.Size()), info.ModTime(), nil
}

func (f *store) create() (err error) {
	f.File, err = os.OpenFile(f.path, os.O_RDWR|os.O_CREATE, 0o600)
	return err
}

// extend makes the file so long.
func (f *store) extend(size uint64) error {
	if !f.is() {
		if err := f.create(); err != nil {
			return err
		}
	}
	return f.Truncate(int64(size))
}

func (f *store) load(data []byte, offset uint64) error {
	if len(data) == 0 {
		return nil
	}
	if !f.is() {
		return io.ErrUnexpectedEOF
	}
	if n, err := f.ReadAt(data, int64(offset)); n < len(data) {
		return err
	}
	return nil
}

func (f *store) punch(from, to int64) {
	if f.is() {
		punch(f.File, from, to)
	}
}

func (f *store) close() {
	if f.is() {
		_ = f.Close()
	}
}

func openStream(path string, id executionv1.Stream, mark Mark, c Config) (*stream, error) {
	f := store{path: path}
	size, at, err := f.find()
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	st := &stream{
		id: id, file: f, captured: max(size, mark.Cut), cut: mark.Cut, acked: mark.Acked, since: at,
		ends: c.Limit.ends(mark, c.Preroll),
	}
	if mark.End != nil {
		st.end, st.final, st.captured = *mark.End, true, max(mark.End.Captured, mark.Cut)
	}
	if st.captured > size {
		// Offsets go on where they were given out; what is missing is found by its checksum.
		if err := st.file.extend(st.captured); err != nil {
			st.file.close()
			return nil, fmt.Errorf("open spool: %w", err)
		}
	}
	return st, nil
}

// Load returns a chunk's bytes.
func (s *Spool) Load(c Chunk) ([]byte, error) {
	data := make([]byte, c.Length)
	return data, s.LoadInto(data, c.Stream, c.Offset)
}

// LoadInto fills data with the bytes of a stream from an offset on.
func (s *Spool) LoadInto(data []byte, id executionv1.Stream, offset uint64) error {
	if err := s.stream(id).file.load(data, offset); err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	return nil
}
