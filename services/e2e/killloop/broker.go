package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	embedded "verbatim.dev/services/embedded/kafka"
)

// broker is what the loop uses as a broker: an embedded one in a process of its own, or somebody's.
type broker struct {
	addr    string
	restart func(ctx context.Context) error
	stop    func()
}

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

func (p plan) startBroker() (*broker, error) {
	if p.broker != "" {
		return &broker{addr: p.broker, stop: func() {}, restart: func(ctx context.Context) error {
			if out, err := exec.CommandContext(ctx, "bash", "-c", p.brokerRestart).CombinedOutput(); err != nil {
				return fmt.Errorf("restart broker: %w: %s", err, out)
			}
			return nil
		}}, nil
	}
	c := &childBroker{dir: filepath.Join(p.dir, "broker"), addr: "127.0.0.1:0"}
	if err := c.start(); err != nil {
		return nil, err
	}
	return &broker{addr: c.addr, stop: c.kill, restart: func(context.Context) error {
		c.kill()
		return c.start()
	}}, nil
}

// childBroker is the embedded broker as a child.
type childBroker struct {
	dir, addr string
	cmd       *exec.Cmd
	stdin     io.Closer
}

func (b *childBroker) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.cmd = exec.CommandContext(context.Background(), self, "broker", b.dir, b.addr)
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
		b.kill()
		return fmt.Errorf("start broker: it said %q: %w", line, err)
	}
	b.addr = strings.TrimSpace(line)
	return nil
}

func (b *childBroker) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait() // It was killed; that is its error.
	_ = b.stdin.Close()
}
