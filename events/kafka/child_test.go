package kafka_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"verbatim.dev/events/kafka"
)

// childDir and childAddr make the test binary a broker, for tests that kill it.
const (
	childDir  = "VERBATIM_TEST_BROKER_DIR"
	childAddr = "VERBATIM_TEST_BROKER_ADDR"
)

// beBroker prints its address and serves until it is killed or its stdin ends.
func beBroker(dir, addr string) {
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.DataDir(dir),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) { return net.Listen(network, addr) }),
	)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(c.ListenAddrs()[0])
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// child is a broker in a process of its own.
type child struct {
	dir string

	mu    sync.Mutex
	addr  string
	cmd   *exec.Cmd
	stdin io.Closer
}

func startChild(t *testing.T) *child {
	t.Helper()
	c := &child{dir: t.TempDir(), addr: "127.0.0.1:0"}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

func (c *child) start() error {
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), childDir+"="+c.dir, childAddr+"="+c.addr)
	c.cmd.Stderr = os.Stderr
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return err
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error:") {
		return fmt.Errorf("broker said %q: %w", line, err)
	}
	c.addr = strings.TrimSpace(line)
	return nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	_ = c.stdin.Close()
}

func (c *child) restart() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill()
	return c.start()
}

func (c *child) config() kafka.Config { return kafka.Config{Brokers: []string{c.addr}} }
