package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// shared is the one stack of all scenarios that say "server": they only run executions and look at their own, so that
// they also show that executions of every kind leave each other alone.
type shared struct {
	once      sync.Once
	stack     stack
	dir       string
	addresses addresses
	err       error
}

type sharedKey struct{}

// server starts the shared stack, if no scenario did yet, and sets VERBATIM_SERVER, HTTP, KAFKA and CLICKHOUSE.
func server(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: server")
	}
	s := ts.Value(sharedKey{}).(*shared)
	s.once.Do(func() { s.err = s.start(environ(ts)) })
	ts.Check(s.err)
	s.addresses.setenv(ts)
}

func (s *shared) start(env []string) (err error) {
	if s.dir, err = os.MkdirTemp("", "verbatim-e2e"); err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	env = append(env, "TMPDIR="+s.dir) // The scenario's own goes when it ends.
	if err := s.stack.start(env, s.dir, data, []string{"--runner-id", "shared"}); err != nil {
		return err
	}
	s.addresses, err = s.stack.await(data, filepath.Join(s.dir, "up.log"))
	return err
}

// stop ends the shared stack after the last scenario. It must end cleanly, and it must not have ended before.
func (s *shared) stop(t *testing.T) {
	if s.stack.process == nil {
		return
	}
	err := s.stack.stop(syscall.SIGTERM)
	if err != nil || t.Failed() {
		log, _ := os.ReadFile(filepath.Join(s.dir, "up.log"))
		t.Logf("the shared stack's log:\n%s", log[max(0, len(log)-20000):])
	}
	if err := errors.Join(err, os.RemoveAll(s.dir)); err != nil {
		t.Errorf("the shared stack did not stop cleanly: %v", err)
	}
}
