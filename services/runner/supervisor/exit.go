package supervisor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/protocol"
)

// settleTime is how long the name of an exit record may wait for the disk: a process that is released by then needs none.
const settleTime = 100 * time.Millisecond

// wait waits for the end, writes it down, and tells the worker.
func (h *Host) wait(attempt, folder string, p *held) {
	exit, err := p.process.Wait()
	if errors.Is(err, os.ErrClosed) {
		return // Released before it ended: nobody wants to know.
	}
	e := &protocol.Exit{Code: exit.Code, Signal: exit.Signal, CoreDumped: exit.CoreDumped, EndedAt: exit.EndedAt}
	if err != nil {
		e = &protocol.Exit{EndedAt: time.Now(), WaitError: err.Error(), Errno: errnoOf(err)}
	} else if e.Usage, err = proto.Marshal(exit.Usage); err != nil {
		h.logger.Error("resource usage cannot be encoded", "attempt", attempt, "error", err)
	}
	e.OOMKills, e.OOMEvidence = p.group.OOMKills()
	data, err := json.Marshal(e)
	if err == nil {
		err = journal.WriteAside(filepath.Join(folder, protocol.ExitFile), data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It is still told, and told again to every worker while this supervisor lives.
		h.logger.Error("exit record cannot be written", "attempt", attempt, "error", err)
	}
	h.mu.Lock()
	p.exit = e
	h.mu.Unlock()
	h.tell(attempt)
	p.settle(folder)
}

// settle puts the exit record's name on the disk, unless the process is released first: then the worker has said how it ended. Only a
// machine that loses its power makes a difference.
func (p *held) settle(folder string) {
	select {
	case <-p.released:
	case <-time.After(settleTime):
		_ = journal.SyncFolder(folder) // It may be gone.
	}
}

// tell tells the worker how a process ended, when it has.
func (h *Host) tell(attempt string) {
	h.mu.Lock()
	p, c := h.held[attempt], h.worker
	var exit *protocol.Exit
	if p != nil {
		exit = p.exit
	}
	h.mu.Unlock()
	if exit == nil || c == nil {
		return
	}
	// An error means that the worker is gone; the next one is told when it asks for the process.
	_ = c.Send(protocol.Message{Kind: protocol.Exited, Attempt: attempt, Exit: exit})
}
