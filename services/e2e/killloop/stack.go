package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds every wait for something that must happen. An execution that begins while everything is being
// killed waits for its turn, so it is generous.
const patience = 3 * time.Minute

// program is a process of Verbatim that the loop started.
type program struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// launch starts verbatim with arguments. Its log goes to a file beside the data.
func (p plan) launch(name string, args ...string) (*program, error) {
	log, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c, err := p.verbatimCommand(context.Background(), args...)
	if err != nil {
		return nil, err
	}
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the loop, which stops what it started.
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s := &program{name: name, cmd: c, ended: make(chan struct{})}
	go func() {
		s.err = c.Wait()
		close(s.ended)
	}()
	return s, nil
}

// verbatimCommand is the program under test: a file, or this binary under that name.
func (p plan) verbatimCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	file := p.verbatim
	if file == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		file = self
	}
	c := exec.CommandContext(ctx, file, args...)
	c.Args[0] = "verbatim"
	// Nothing of the caller's configuration, save where the engine is.
	c.Env = []string{"HOME=" + p.dir}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "PATH", "TMPDIR", "GORACE", "GOCOVERDIR", "VERBATIM_LIBCHDB", "VERBATIM_CACHE", "XDG_CACHE_HOME":
			c.Env = append(c.Env, v)
		}
	}
	if home, err := os.UserHomeDir(); err == nil && os.Getenv("XDG_CACHE_HOME") == "" {
		c.Env = append(c.Env, "XDG_CACHE_HOME="+filepath.Join(home, ".cache"))
	}
	return c, nil
}

func (s *program) kill() {
	_ = s.cmd.Process.Kill() // It may have ended.
	<-s.ended
}

// stop stops it and wants that to be clean.
func (s *program) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // It may have ended.
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.kill()
		return fmt.Errorf("%s did not stop within %s", s.name, patience)
	}
	if s.err != nil {
		return fmt.Errorf("%s did not stop cleanly: %w", s.name, s.err)
	}
	return nil
}

func (s *program) running() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// up starts "verbatim up" and waits until it is ready; server is its URL.
func (p plan) up(ctx context.Context, args ...string) (s *program, server string, err error) {
	data := filepath.Join(p.dir, "data")
	_ = os.Remove(filepath.Join(data, "endpoints.json")) // Of one that was killed.
	flags := []string{"up", "--data", data, "--http", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--clickhouse", "127.0.0.1:0", "--grace", "2s"}
	s, err = p.launch("up", append(flags, args...)...)
	if err != nil {
		return nil, "", err
	}
	err = poll(ctx, func() error {
		if !s.running() {
			return errFinal{fmt.Errorf("up ended: %w", s.err)}
		}
		text, err := os.ReadFile(filepath.Join(data, "endpoints.json"))
		if err != nil {
			return err
		}
		var at struct{ HTTP string }
		if err := json.Unmarshal(text, &at); err != nil {
			return err
		}
		answer, err := http.Get("http://" + at.HTTP + "/readyz") //nolint:noctx // The poll is bounded.
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("up is not ready: %s", answer.Status)
		}
		server = "http://" + at.HTTP
		return nil
	})
	if err != nil {
		s.kill()
		return nil, "", err
	}
	return s, server, nil
}

// find returns the process below another one whose command has the word, 0 when there is none. Below includes itself.
func find(below int, word string) int {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", below))
	if args := bytes.Split(cmdline, []byte{0}); len(args) > 1 && string(args[1]) == word && string(args[0]) == "verbatim" {
		return below
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", below)) // proc_tid_children(5)
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(child)
			if found := find(pid, word); found != 0 {
				return found
			}
		}
	}
	return 0
}

// errFinal ends a poll at once.
type errFinal struct{ error }

// poll tries until it works or patience ends.
func poll(ctx context.Context, try func() error) error {
	return pollEvery(ctx, 50*time.Millisecond, try)
}

func pollEvery(ctx context.Context, every time.Duration, try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || errors.As(err, &errFinal{}) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
