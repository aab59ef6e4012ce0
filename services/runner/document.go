package runner

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// ErrUploadGone is what Config.Upload returns when parts are no more in the log.
var ErrUploadGone = errors.New("parts of it are no more in the log")

// fetchesAtOnce bounds how many uploads are fetched at one time: each holds some MiB of what the broker sends.
const fetchesAtOnce = 2

// errLeft says that the runner has to be gone before the process could be started; the next start goes on.
var errLeft = errors.New("runner ended before the start")

// startedBefore reports whether a supervisor was asked before: it has the document, or did.
func (a *attempt) startedBefore() bool {
	_, err := os.Stat(filepath.Join(a.folder, protocol.StartingFile))
	return err == nil
}

// document is what the process gets on its standard input, nil for nothing. Who gets it closes it.
func (a *attempt) document(life context.Context) (*os.File, error) {
	switch {
	case len(a.spec.GetSecrets()) > 0:
		values, err := a.openSecrets()
		if err != nil {
			return nil, err
		}
		line := secretDocument(values)
		wipe(values)
		defer clear(line)
		return newDocument(line)
	case a.spec.GetStdinUpload() != nil:
		return a.uploaded(life)
	case len(a.spec.GetStdin()) > 0:
		return newDocument(a.spec.GetStdin())
	default:
		return nil, nil
	}
}

// uploaded fetches an uploaded standard input from the log. It is a file without a name in the attempt's folder: as many of
// them as there are slots would be much memory. It is no secret, and the log has it, too.
func (a *attempt) uploaded(life context.Context) (_ *os.File, err error) {
	u := a.spec.GetStdinUpload()
	failed := func(err error) error {
		return &process.StartError{Reason: executionv1.StartFailureReason_START_FAILURE_REASON_STDIN, Message: fmt.Sprintf("uploaded standard input %s: %v", u.GetUpload(), err)}
	}
	if u.GetSizeBytes() > events.MaxStdinBytes {
		return nil, failed(fmt.Errorf("it has %d bytes, the limit is %d", u.GetSizeBytes(), events.MaxStdinBytes))
	}
	if a.runner.config.Upload == nil {
		return nil, failed(errors.New("this runner cannot fetch it"))
	}
	f, err := unnamed(a.folder)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	ctx, cancel := context.WithCancel(life)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-a.cancelled:
			cancel()
		case <-stop:
		}
	}()
	digest, size := sha256.New(), uint64(0)
	err = a.fetch(ctx, u, func(offset uint64, data []byte) error {
		// Parts come in order; one that comes again says nothing new.
		if end := offset + uint64(len(data)); end <= size {
			return nil
		} else if offset != size {
			return ErrUploadGone
		}
		size += uint64(len(data))
		digest.Write(data)
		_, err := f.Write(data)
		return err
	})
	switch {
	case life.Err() != nil:
		return nil, errLeft
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w%s", errCancelled, a.why)
	case errors.Is(err, ErrUploadGone):
		return nil, failed(err)
	case err != nil:
		return nil, fmt.Errorf("fetch the uploaded standard input: %w", err)
	case size < u.GetSizeBytes():
		return nil, failed(ErrUploadGone)
	case size > u.GetSizeBytes() || string(digest.Sum(nil)) != string(u.GetSha256()):
		return nil, failed(fmt.Errorf("it has %d bytes with SHA-256 %x, the request says %d with %x", size, digest.Sum(nil), u.GetSizeBytes(), u.GetSha256()))
	}
	if size == 0 {
		return nil, f.Close()
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// fetch waits for its turn.
func (a *attempt) fetch(ctx context.Context, u *executionv1.StdinUpload, take func(uint64, []byte) error) error {
	select {
	case a.runner.fetches <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.runner.fetches }()
	return a.runner.config.Upload(ctx, u, take)
}

// unnamed is a file that nobody else can open, and that is gone when it is closed.
func unnamed(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, "stdin-")
	if err != nil {
		return nil, fmt.Errorf("make the stdin document: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make the stdin document: %w", err), f.Close())
	}
	return f, nil
}
