package clickhouse

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// heldBack is how much of an answer is held back, in bytes, so that an error that comes early has a status of its own.
const heldBack = 1 << 20

// answerPipe is a named pipe through which the engine hands over an answer. A file would do as well, but the engine
// reports success when the disk is full and the file is cut. A pipe has no end of its own: end tells that the writer is
// done.
type answerPipe struct {
	path   string
	reader *os.File
	keeper *os.File // a writer of ours; as long as it is open the reader sees no end
}

func newAnswerPipe(folder string) (*answerPipe, error) {
	p := &answerPipe{path: filepath.Join(folder, "answer-"+rand.Text())}
	if err := unix.Mkfifo(p.path, 0o600); err != nil {
		return nil, fmt.Errorf("make the pipe of an answer: %w", err)
	}
	var err error
	if p.reader, err = os.OpenFile(p.path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
		p.keeper, err = os.OpenFile(p.path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the pipe of an answer: %w", err), p.close())
	}
	return p, nil
}

// end lets the reader see the end after what is in the pipe.
func (p *answerPipe) end() error { return p.keeper.Close() }

func (p *answerPipe) close() error {
	var errs []error
	for _, file := range []*os.File{p.reader, p.keeper} {
		if file == nil {
			continue
		}
		if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.Remove(p.path))...)
}

// runPiped lets the engine write the answer of a SELECT to a pipe of ours, with the INTO OUTFILE that is closed to
// clients, and passes it on. The answer may be larger than memory and disk. The statement may turn out to be no SELECT
// (WITH … INSERT), which the parser then says before anything runs.
//
// When the client goes away, giveUp cancels the statement and the pipe is read to its end all the same: a write to a
// pipe without a reader raises SIGPIPE, which on a thread of the engine's ends the process (runtime.raisebadsignal).
func runPiped(c *conn, q *request, st statement, text, format string, reply *reply, giveUp func()) (err error) {
	if !settingName.MatchString(format) {
		return raise(codeUnknownFormat, "UNKNOWN_FORMAT", "Unknown format %s", format)
	}
	pipe, err := newAnswerPipe(reply.spool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pipe.close()) }()
	out := bufio.NewWriterSize(reply, heldBack)
	copied := make(chan error, 1)
	go func() {
		// ReadFrom of the buffer would pass everything on at once.
		_, err := io.Copy(struct{ io.Writer }{out}, pipe.reader)
		if err != nil {
			giveUp()
			_, drainErr := io.Copy(io.Discard, pipe.reader)
			err = errors.Join(err, drainErr)
		}
		copied <- err
	}()
	r, queryErr := c.query(intoOutfile(st, text, format, pipe.path), format, q.parameters)
	defer r.free()
	endErr := pipe.end()
	if err := errors.Join(endErr, <-copied); err != nil {
		return err
	}
	if queryErr != nil {
		if asException(queryErr).code == codeSyntaxError {
			return runWhole(c, q, text, format, reply)
		}
		return queryErr
	}
	reply.stats.add(r.stats())
	return out.Flush()
}

// intoOutfile puts INTO OUTFILE where the grammar wants it, before FORMAT. APPEND is the mode that opens what is there.
func intoOutfile(st statement, text, format, path string) string {
	head, tail := text[:st.textEnd], "FORMAT "+format
	if st.formatAt >= 0 {
		head, tail = text[:st.formatAt], text[st.formatAt:]
	}
	return head + "\nINTO OUTFILE " + quoteString(path) + " APPEND " + tail
}
