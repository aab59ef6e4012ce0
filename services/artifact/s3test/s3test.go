// Package s3test gives tests a real S3-compatible server: versitygw on a folder, as a process of its own that can be killed and started
// again. scripts/fetch-versitygw builds it once; when that cannot be done the test fails.
package s3test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Access and Secret are the server's credentials, as S3 clients find them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
const (
	Access = "verbatim-test"
	Secret = "verbatim-test-secret"
)

// Bucket is the bucket that is there.
const Bucket = "artifacts"

var program = sync.OnceValues(func() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	c := exec.CommandContext(context.Background(), filepath.Join(filepath.Dir(here), "../../../scripts/fetch-versitygw"))
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("scripts/fetch-versitygw: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// Server is a server; Start it.
type Server struct {
	t    testing.TB
	dir  string
	addr string
	run  *exec.Cmd
}

// New makes a server that does not run yet, and puts its credentials into the environment, which no parallel test may do.
func New(t testing.TB) *Server {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", Secret)
	s := &Server{t: t, dir: t.TempDir()}
	for _, dir := range []string{"data/" + Bucket, "meta"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// URL is that of a bucket on the server.
func (s *Server) URL(bucket string) string {
	return "s3://" + bucket + "?region=us-east-1&use_path_style=true&endpoint=http://" + s.addr
}

// Start returns when the server answers.
func (s *Server) Start() {
	s.t.Helper()
	name, err := program()
	if err != nil {
		s.t.Fatal(err)
	}
	s.run = exec.CommandContext(context.WithoutCancel(s.t.Context()), name, "--port", s.addr, "--quiet", "posix", "--sidecar", filepath.Join(s.dir, "meta"), filepath.Join(s.dir, "data"))
	s.run.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Access, "ROOT_SECRET_KEY="+Secret)
	s.run.Stderr = os.Stderr
	if err := s.run.Start(); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // The pace of asking another process, which sends no signal.
		c, err := (&net.Dialer{}).DialContext(s.t.Context(), "tcp", s.addr)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("versitygw does not answer: %v", err)
		}
	}
}

// Kill ends the server as SIGKILL does. What it had taken is there when it is started again.
func (s *Server) Kill() {
	if s.run == nil {
		return
	}
	_ = s.run.Process.Kill()
	_ = s.run.Wait()
	s.run = nil
}
