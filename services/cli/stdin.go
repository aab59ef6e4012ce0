package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"verbatim.dev/events"
	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway/api"
)

// inRequest is how much of a standard input goes into the request itself; more is uploaded before.
const inRequest = 1 << 20

// standardInput is what the process is to read.
type standardInput struct {
	small []byte
	large io.Reader // nil when small is all of it.
	file  *os.File
}

func (c *runCommand) openStdin(own io.Reader) (in standardInput, err error) {
	var r io.Reader
	switch c.Stdin {
	case "":
		return in, nil
	case "-":
		r = own
	default:
		if in.file, err = os.Open(c.Stdin); err != nil {
			return in, usageError{fmt.Errorf("--stdin: %w", err)}
		}
		if info, err := in.file.Stat(); err == nil && info.Size() > events.MaxStdinBytes {
			in.close()
			return in, errTooMuch
		}
		r = in.file
	}
	if in.small, err = io.ReadAll(io.LimitReader(r, inRequest+1)); err != nil {
		in.close()
		return in, fmt.Errorf("read stdin: %w", err)
	}
	if len(in.small) <= inRequest {
		return in, nil
	}
	in.large = &limited{io.MultiReader(bytes.NewReader(in.small), r), events.MaxStdinBytes}
	if in.file != nil {
		if _, err := in.file.Seek(0, io.SeekStart); err == nil {
			in.large = in.file // So that it can be sent again.
		}
	}
	return in, nil
}

// send puts the bytes into the request, or uploads them and says where they lie.
func (in standardInput) send(ctx context.Context, c *client.Client, r *api.SubmitRequest) error {
	if in.large == nil {
		r.Stdin = in.small
		return nil
	}
	u, err := c.Upload(ctx, in.large)
	if errors.Is(err, errTooMuch) {
		return errTooMuch
	}
	if err != nil {
		return fmt.Errorf("upload stdin: %w", err)
	}
	r.StdinUpload = &u
	return nil
}

func (in standardInput) close() {
	if in.file != nil {
		in.file.Close()
	}
}

var errTooMuch = usageError{fmt.Errorf("stdin is larger than %d MiB, which is the most that an execution takes: let the process read a file", events.MaxStdinBytes>>20)}

// limited is a reader that fails after a number of bytes.
type limited struct {
	io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooMuch
	}
	return n, err
}
