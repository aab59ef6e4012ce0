// Package rig starts processes of Verbatim for programs that look at them from outside: the kill loop and the benchmark of the
// runner. A program that uses it calls Play first: it is each of those processes itself, unless another program is named.
package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"verbatim.dev/services/cli"
)

const brokerRole = "rig-broker"

// Play makes this program one of the processes, when its command line says so.
func Play(args []string) (code int, played bool) {
	switch {
	case filepath.Base(args[0]) == "verbatim":
		return cli.Main(args[1:], os.Stdin, os.Stdout, os.Stderr), true
	case len(args) == 4 && args[1] == brokerRole:
		return beBroker(args[2], args[3]), true
	}
	return 0, false
}

// Rig says which program, and where its logs go.
type Rig struct {
	// Dir is a folder; the logs are NAME.log in it.
	Dir string
	// Program is the program to look at; empty: this one.
	Program string
}

// Process is a process of Verbatim.
type Process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// Launch starts verbatim with arguments. Its log goes to a file beside the data.
func (r Rig) Launch(name string, args ...string) (*Process, error) {
	log, err := os.OpenFile(filepath.Join(r.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c, err := r.Command(context.Background(), args...)
	if err != nil {
		return nil, err
	}
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for who started it, who stops what it started.
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s := &Process{name: name, cmd: c, ended: make(chan struct{})}
	go func() {
		s.err = c.Wait()
		close(s.ended)
	}()
	return s, nil
}

// Command is the program under test: a file, or this binary under that name.
func (r Rig) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	file := r.Program
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
	c.Env = []string{"HOME=" + r.Dir}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "PATH", "TMPDIR", "GORACE", "GOCOVERDIR", "VERBATIM_LIBCHDB", "VERBATIM_CACHE", "XDG_CACHE_HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY":
			c.Env = append(c.Env, v)
		}
	}
	if home, err := os.UserHomeDir(); err == nil && os.Getenv("XDG_CACHE_HOME") == "" {
		c.Env = append(c.Env, "XDG_CACHE_HOME="+filepath.Join(home, ".cache"))
	}
	return c, nil
}

// Kill kills it and waits for its end.
func (s *Process) Kill() {
	_ = s.cmd.Process.Kill() // It may have ended.
	<-s.ended
}

// Stop stops it and wants that to be clean.
func (s *Process) Stop(patience time.Duration) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // It may have ended.
	select {
	case <-s.ended:
	case <-time.After(patience):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // Its log then says what each goroutine waits for.
		select {
		case <-s.ended:
		case <-time.After(10 * time.Second):
		}
		s.Kill()
		return fmt.Errorf("%s did not stop within %s; its log ends with its goroutines", s.name, patience)
	}
	if s.err != nil {
		return fmt.Errorf("%s did not stop cleanly: %w", s.name, s.err)
	}
	return nil
}

// Running reports whether it has not ended.
func (s *Process) Running() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// PID is its number.
func (s *Process) PID() int { return s.cmd.Process.Pid }

// PeakMemory is the most that it had resident until now, in bytes; 0 when that cannot be read (it has ended, or this is no Linux).
func (s *Process) PeakMemory() uint64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID())) // VmHWM, proc_pid_status(5)
	_, after, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib uint64
	_, _ = fmt.Sscan(string(after), &kib)
	return kib << 10
}

// Err is how it ended, once it has.
func (s *Process) Err() error { return s.err }

// Find returns the process below another one whose command has the word, 0 when there is none. Below includes itself.
func Find(below int, word string) int {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", below))
	if args := bytes.Split(cmdline, []byte{0}); len(args) > 1 && string(args[1]) == word && string(args[0]) == "verbatim" {
		return below
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", below)) // proc_tid_children(5)
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(child)
			if found := Find(pid, word); found != 0 {
				return found
			}
		}
	}
	return 0
}
