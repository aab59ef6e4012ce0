package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	embedded "verbatim.dev/services/embedded/kafka"
)

// beBroker is the embedded broker. It ends with its standard input.
func beBroker(dir, addr string) int {
	s, err := embedded.Start(context.Background(), embedded.Config{Addr: addr, DataDir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// Broker is the embedded broker as a process of its own.
type Broker struct {
	// Addr is its host:port, the same after a restart.
	Addr string

	dir   string
	cmd   *exec.Cmd
	stdin io.Closer
}

// StartBroker starts one on a folder.
func StartBroker(dir string) (*Broker, error) {
	b := &Broker{Addr: "127.0.0.1:0", dir: dir}
	return b, b.start()
}

// Restart kills it and starts it again.
func (b *Broker) Restart() error {
	b.Kill()
	return b.start()
}

func (b *Broker) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.cmd = exec.CommandContext(context.Background(), self, brokerRole, b.dir, b.Addr)
	b.cmd.Stderr = os.Stderr
	stdin, err1 := b.cmd.StdinPipe()
	stdout, err2 := b.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("pipes of broker: %w", err)
	}
	b.stdin = stdin
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Kill()
		return fmt.Errorf("start broker: it said %q: %w", line, err)
	}
	b.Addr = strings.TrimSpace(line)
	return nil
}

// Kill kills it.
func (b *Broker) Kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait() // It was killed; that is its error.
	_ = b.stdin.Close()
}
