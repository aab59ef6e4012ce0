// Command kafkasoak holds the transport to its promises for minutes on end: three consumers of one group join and
// leave, some of them without settling what they hold; messages are refused now and then; and the broker is killed
// with SIGKILL and started again all the time. scripts/soak-transport runs it on the embedded broker, which is a child
// process, or on Apache Kafka.
//
// It ends with an error when
//   - an acknowledged message was not delivered,
//   - the first deliveries of a key are not in the order they were published in,
//   - a member skips a message that nobody has acknowledged, or
//   - an offset is committed above a message that nobody has acknowledged.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"verbatim.dev/events/kafka"
	embedded "verbatim.dev/services/embedded/kafka"
)

const (
	group      = "soak"
	topic      = "soak"
	partitions = 6
	keys       = 240
	writers    = 8
	members    = 3
	perMinute  = 50_000
)

func main() {
	if err := start(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func start(out io.Writer) error {
	if dir := os.Getenv(brokerDir); dir != "" {
		if err := beBroker(out, dir, os.Getenv(brokerAddr)); err != nil {
			fmt.Fprintln(out, "error:", err)
			return err
		}
		return nil
	}
	duration := flag.Duration("for", 5*time.Minute, "how long to publish")
	every := flag.Duration("kill-every", 20*time.Second, "how often the broker is killed")
	addr := flag.String("addr", "", "address of a broker to use instead of the embedded one")
	restart := flag.String("restart", "", "command that kills that broker and starts it again")
	verbose := flag.Bool("v", false, "show the transport's log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return run(ctx, out, *duration, *every, *addr, *restart, *verbose)
}

func run(ctx context.Context, out io.Writer, duration, every time.Duration, addr, restart string, verbose bool) error {
	again := func() error {
		if out, err := exec.CommandContext(ctx, "bash", "-c", restart).CombinedOutput(); err != nil {
			return fmt.Errorf("restart broker: %w: %s", err, out)
		}
		return nil
	}
	if addr == "" {
		b, err := startBroker()
		if err != nil {
			return err
		}
		defer b.remove()
		addr, again = b.addr, b.restart
	}
	c := kafka.Config{Brokers: []string{addr}}
	if verbose {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if err := kafka.EnsureTopics(ctx, c, []kafka.Topic{{Name: topic, Partitions: partitions}}); err != nil {
		return err
	}
	s := &soak{config: c, out: out, log: newLedger(), began: time.Now()}
	return s.run(ctx, duration, every, again)
}

// soak is one run.
type soak struct {
	config kafka.Config
	out    io.Writer
	log    *ledger
	began  time.Time

	kills, joins, walkouts, refused atomic.Int64
}

func (s *soak) run(ctx context.Context, duration, every time.Duration, again func() error) error {
	publishing, stopPublishing := context.WithTimeout(ctx, duration)
	defer stopPublishing()
	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()

	var consumers, others, publishers sync.WaitGroup
	for n := range members {
		consumers.Go(func() { s.member(consuming, n) })
	}
	others.Go(func() { s.watchCommits(consuming) })
	others.Go(func() { s.report(consuming) })
	var killing error
	others.Go(func() { killing = s.killer(publishing, every, again) })
	if err := s.publish(publishing, &publishers); err != nil {
		return err
	}
	fmt.Fprintln(s.out, s.line("published all, waiting for the rest"))
	left := s.rest(ctx)
	stopConsuming()
	consumers.Wait()
	others.Wait()
	fmt.Fprintln(s.out, s.line("end"))
	problems := append(s.log.problems(), left...)
	for _, p := range problems {
		fmt.Fprintln(s.out, "  ", p)
	}
	if len(problems) > 0 || killing != nil {
		return errors.Join(killing, fmt.Errorf("%d broken promises", len(problems)))
	}
	fmt.Fprintln(s.out, "PASS: every acknowledged message delivered, order per key kept, nothing skipped, nothing committed too early")
	return nil
}

// rest waits until everything acknowledged by the broker is acknowledged by a consumer.
func (s *soak) rest(ctx context.Context) []string {
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := s.log.missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return missing
		case <-ctx.Done():
			return []string{"interrupted"}
		}
	}
}

func (s *soak) killer(ctx context.Context, every time.Duration, again func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := again(); err != nil {
				return err
			}
			s.kills.Add(1)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *soak) report(ctx context.Context) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprintln(s.out, s.line("running"))
		case <-ctx.Done():
			return
		}
	}
}

func (s *soak) line(what string) string {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%6.0fs %s: acknowledged by broker %d, delivered %d, of these again %d, commits seen %d, kills %d, joins %d, walk-outs %d, refused %d, broken promises %d",
		time.Since(s.began).Seconds(), what, l.published, l.delivered, l.again, l.commits, s.kills.Load(), s.joins.Load(), s.walkouts.Load(), s.refused.Load(), len(l.broken))
}

// brokerDir and brokerAddr make this binary the embedded broker.
const (
	brokerDir  = "VERBATIM_SOAK_BROKER_DIR"
	brokerAddr = "VERBATIM_SOAK_BROKER_ADDR"
)

func beBroker(out io.Writer, dir, addr string) error {
	s, err := embedded.Start(context.Background(), embedded.Config{Addr: addr, DataDir: dir})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// broker is the embedded broker as a child.
type broker struct {
	dir, addr string
	cmd       *exec.Cmd
	stdin     io.Closer
}

func startBroker() (*broker, error) {
	dir, err := os.MkdirTemp("", "verbatim-soak")
	if err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	b := &broker{dir: dir, addr: "127.0.0.1:0"}
	return b, b.start()
}

func (b *broker) start() error {
	b.cmd = exec.CommandContext(context.Background(), os.Args[0])
	b.cmd.Env = append(os.Environ(), brokerDir+"="+b.dir, brokerAddr+"="+b.addr)
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
	if err != nil || strings.HasPrefix(line, "error:") {
		return fmt.Errorf("start broker: it said %q: %w", line, err)
	}
	b.addr = strings.TrimSpace(line)
	return nil
}

func (b *broker) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	_ = b.stdin.Close()
}

func (b *broker) restart() error {
	b.kill()
	return b.start()
}

func (b *broker) remove() {
	b.kill()
	_ = os.RemoveAll(b.dir)
}
