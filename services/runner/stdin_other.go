//go:build !linux

package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// newDocument is a file without a name, with the bytes, at its beginning.
func newDocument(data []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "verbatim-stdin-")
	if err != nil {
		return nil, fmt.Errorf("make the stdin document: %w", err)
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the stdin document: %w", err), f.Close())
	}
	return f, nil
}

// pour moves the rest of a document into a pipe, and the document's position by what the pipe took.
func pour(pipe, document *os.File) error {
	at, err := document.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	buffer := make([]byte, 64<<10)
	for {
		n, readErr := document.ReadAt(buffer, at)
		k, err := pipe.Write(buffer[:n])
		at += int64(k)
		if _, seekErr := document.Seek(at, io.SeekStart); err == nil {
			err = seekErr
		}
		if err != nil {
			return err
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		} else if readErr != nil {
			return readErr
		}
	}
}
