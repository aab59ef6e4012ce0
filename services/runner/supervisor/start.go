package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
)

// find looks for the directory and the program. It is a variable for tests, which have no mount that does not answer.
var find = process.Spec.Find

// start starts the process, or finds it, and answers.
//
// The look at the directory and the program reserves nothing, holds nothing that others need, and may take for ever: a mount may not
// answer. Nobody waits for it, and when its worker is gone by then it was for nothing; the next worker asks by itself. What follows is
// short, and Serve waits for it.
func (h *Host) start(c *protocol.Conn, m protocol.Message) {
	var spec process.Spec
	var refused error
	if !m.Cut && !h.wasStarted(m) {
		spec, refused = specOf(m)
	}
	leave, served := h.enter(c, m.Attempt)
	if !served {
		protocol.CloseAll(m.Files)
		return
	}
	defer leave()
	answer, after := h.startOnce(m, spec, refused)
	answer.Number = m.Number
	_ = c.Send(answer) // An error is seen by Receive, too.
	after()
}

// wasStarted reports whether the attempt was started, by this supervisor or another one: then nothing needs to be looked for.
func (h *Host) wasStarted(m protocol.Message) bool {
	h.mu.Lock()
	_, known := h.held[m.Attempt]
	h.mu.Unlock()
	if known {
		return true
	}
	_, err := os.Lstat(filepath.Join(m.Folder, protocol.StartingFile))
	return err == nil
}

// enter begins what is done once for an attempt, and waits for who does it already. It reports false when the worker is not served any more.
func (h *Host) enter(c *protocol.Conn, attempt string) (leave func(), served bool) {
	mine := make(chan struct{})
	for {
		h.mu.Lock()
		if h.worker != c {
			h.mu.Unlock()
			return nil, false
		}
		other := h.starting[attempt]
		if other == nil {
			h.starting[attempt] = mine
			h.starts.Add(1)
			h.mu.Unlock()
			break
		}
		h.mu.Unlock()
		<-other
	}
	return func() {
		h.mu.Lock()
		delete(h.starting, attempt)
		h.mu.Unlock()
		close(mine)
		h.starts.Done()
	}, true
}

// startOnce starts what specOf has looked for, or finds it. What it returns second is to be called when the answer is sent.
func (h *Host) startOnce(m protocol.Message, spec process.Spec, refused error) (protocol.Message, func()) {
	h.mu.Lock()
	p, known := h.held[m.Attempt]
	h.mu.Unlock()
	if known {
		protocol.CloseAll(m.Files)
		return h.started(p), func() { h.tell(m.Attempt) }
	}
	if m.Cut && !h.wasStarted(m) { // It would read from the null device.
		return protocol.Message{
			Kind: protocol.Done, Error: "the supervisor has no descriptor for the document for standard input", Errno: syscall.EMFILE,
		}, func() {}
	}
	file, err := reserve(m.Folder)
	if errors.Is(err, fs.ErrExist) {
		protocol.CloseAll(m.Files)
		return gone(m.Folder), func() {}
	} else if err != nil {
		protocol.CloseAll(m.Files)
		return protocol.Message{Kind: protocol.Done, Error: fmt.Sprintf("reserve the start: %v", err), Errno: errnoOf(err)}, func() {}
	}
	p, record := h.fork(m, spec, refused)
	// Without a sync: when the machine dies, so does the process, and what this says is of no use any more.
	if err := errors.Join(json.NewEncoder(file).Encode(record), file.Close()); err != nil {
		h.logger.Error("start record cannot be written", "attempt", m.Attempt, "error", err)
	}
	if p == nil {
		return protocol.Message{Kind: protocol.Gone, Record: &record}, func() {}
	}
	return h.started(p), func() {
		h.waits.Go(func() { h.wait(m.Attempt, m.Folder, p) })
	}
}

// reserve makes the start of an attempt ours for ever, and returns the file for its record; fs.ErrExist when it was reserved before.
func reserve(folder string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(folder, protocol.StartingFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := journal.SyncFolder(folder); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// specOf is what to start, checked; its pipes come later. It may take for ever, see find.
func specOf(m protocol.Message) (s process.Spec, err error) {
	s = process.Spec{
		Argv: m.Command.Argv, Environment: m.Command.Environment, Directory: m.Command.Directory, Stdin: len(m.Files) > 0,
	}
	if len(m.Command.Limits) > 0 {
		s.Limits = &executionv1.Limits{}
		if err := proto.Unmarshal(m.Command.Limits, s.Limits); err != nil {
			return s, process.Unavailable(0, "the limits cannot be read: %v", err)
		}
	}
	s.Path, err = find(s)
	return s, err
}
