package kafka_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"verbatim.dev/events/kafka"
	"verbatim.dev/events/kafka/kafkatest"
	embedded "verbatim.dev/services/embedded/kafka"
)

// childDir makes the test binary a broker on this folder, for tests that kill it; childAddr is where it listens.
const (
	childDir  = "VERBATIM_TEST_BROKER_DIR"
	childAddr = "VERBATIM_TEST_BROKER_ADDR"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(kafkatest.SuiteLeak))
}

// child prints its address and serves until it is killed or its stdin ends.
func child(dir string) {
	s, err := embedded.Start(context.Background(), embedded.Config{Addr: os.Getenv(childAddr), DataDir: dir})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startChild returns the address and a function that kills the broker.
func startChild(t *testing.T, dir string) (addr string, kill func()) {
	t.Helper()
	return startChildAt(t, dir, "127.0.0.1:0")
}

func startChildAt(t *testing.T, dir, at string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childAddr+"="+at)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_, _ = io.Copy(io.Discard, stdout)
			_ = cmd.Wait()
			_ = stdin.Close()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error:") {
		t.Fatalf("child: %q %v", line, err)
	}
	return strings.TrimSpace(line), kill
}

func start(t *testing.T, dir, addr string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Config{Addr: addr, DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *embedded.Server) {
	t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func config(addr string) kafka.Config { return kafka.Config{Brokers: []string{addr}} }

func topic(t *testing.T, addr string, settings map[string]string) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), config(addr), []kafka.Topic{{Name: "t", Partitions: 1, Config: settings}}); err != nil {
		t.Fatal(err)
	}
}

// write publishes until n messages are acknowledged, or the broker is gone, and says how many were.
func write(t *testing.T, addr string, from, n, size int) int {
	t.Helper()
	return writeWithin(t, 30*time.Second, addr, from, n, size)
}

// writeWithin is write with what may pass until the broker counts as gone.
func writeWithin(t *testing.T, timeout time.Duration, addr string, from, n, size int) int {
	t.Helper()
	p, err := kafka.NewPublisher(config(addr), kafka.PublisherOptions{Linger: -1, Timeout: timeout, Compression: kafka.CompressionNone})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range n {
		m := message.NewMessage(strconv.Itoa(from+i), []byte(strings.Repeat("x", size)))
		m.Metadata["ce_partitionkey"] = "k"
		if err := p.Publish("t", m); err != nil {
			return i
		}
	}
	return n
}

func offsets(t *testing.T, addr string) (first, end int64) {
	t.Helper()
	a, err := kafka.NewAdmin(config(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	f, err := a.FirstOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.EndOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	return f[0], e[0]
}

// readAll checks that the log has the messages 0 to n-1 or more, in order, and returns how many.
func readAll(t *testing.T, addr string) int {
	t.Helper()
	_, end := offsets(t, addr)
	r, err := kafka.NewPartitionReader(config(addr), "t", 0, kafka.First)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	next := 0
	for int64(next) < end {
		record, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if id := record.Message().UUID; id != strconv.Itoa(next) {
			t.Fatalf("at %d is %s", next, id)
		}
		next++
	}
	return next
}

// consume acknowledges n messages of the group and commits.
func consume(t *testing.T, addr string, n int) (first string) {
	t.Helper()
	s, err := kafka.NewSubscriber(config(addr), kafka.SubscriberOptions{Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	messages, err := s.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		select {
		case m := <-messages:
			if i == 0 {
				first = m.UUID
			}
			m.Ack()
		case <-time.After(20 * time.Second):
			t.Fatalf("no message after %d", i)
		}
	}
	return first
}

func TestRestartKeepsTopicsRecordsAndOffsets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, "127.0.0.1:0")
	addr := s.Addr()
	topic(t, addr, nil)
	write(t, addr, 0, 20, 10)
	consume(t, addr, 7)
	stop(t, s)
	s = start(t, dir, addr)
	if s.Addr() != addr {
		t.Fatalf("is on %s, was asked for %s", s.Addr(), addr)
	}
	if n := readAll(t, addr); n != 20 {
		t.Errorf("%d records", n)
	}
	if first := consume(t, addr, 1); first != "7" {
		t.Errorf("group goes on with %s", first)
	}
	write(t, addr, 20, 1, 10)
	if n := readAll(t, addr); n != 21 {
		t.Errorf("%d records after writing more", n)
	}
}

func TestKillLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	topic(t, addr, map[string]string{"retention.ms": "604800000"})
	acknowledged := write(t, addr, 0, 50, 1000)
	consume(t, addr, 30)
	written := make(chan int)
	go func() { written <- writeWithin(t, 10*time.Second, addr, acknowledged, 1_000_000, 1000) }()
	for {
		if _, end := offsets(t, addr); end > int64(acknowledged+100) {
			break
		}
	}
	kill()
	acknowledged += <-written
	addr, kill = startChild(t, dir)
	n := readAll(t, addr)
	if n < acknowledged || n > acknowledged+1 {
		t.Errorf("%d records, %d were acknowledged", n, acknowledged)
	}
	if first := consume(t, addr, 1); first != "30" {
		t.Errorf("group goes on with %s", first)
	}
	kill() // and again, at once
	addr, _ = startChild(t, dir)
	if again := readAll(t, addr); again != n {
		t.Errorf("%d records, were %d", again, n)
	}
}

func TestHalfARecordIsDropped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, "127.0.0.1:0")
	topic(t, s.Addr(), nil)
	write(t, s.Addr(), 0, 10, 1000)
	stop(t, s)
	segments, err := filepath.Glob(filepath.Join(dir, "broker", "*", "*", "*.dat"))
	if more, _ := filepath.Glob(filepath.Join(dir, "broker", "*", "*.dat")); len(segments) == 0 {
		segments = more
	}
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments %v, %v", segments, err)
	}
	info, err := os.Stat(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(segments[0], info.Size()-500); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, "127.0.0.1:0")
	if n := readAll(t, s.Addr()); n != 9 {
		t.Errorf("%d records", n)
	}
	write(t, s.Addr(), 9, 1, 10)
	if n := readAll(t, s.Addr()); n != 10 {
		t.Errorf("%d records after writing more", n)
	}
}

func TestFolderBelongsToOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, kill := startChild(t, dir)
	_, err := embedded.Start(t.Context(), embedded.Config{Addr: "127.0.0.1:0", DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use by process ") {
		t.Errorf("second on the folder: %v", err)
	}
	kill()
	start(t, dir, "127.0.0.1:0")
}

func TestOnlyLoopback(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:9092", "example.org:9092", "127.0.0.1"} {
		if _, err := embedded.Start(t.Context(), embedded.Config{Addr: addr, DataDir: t.TempDir()}); err == nil {
			t.Errorf("%s is accepted", addr)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	if _, err := embedded.Start(t.Context(), embedded.Config{Addr: l.Addr().String(), DataDir: dir}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("port in use: %v", err)
	}
	start(t, dir, "127.0.0.1:0") // the failed start gave the folder free
	start(t, t.TempDir(), "localhost:0")
}

func TestNoTopicByAccident(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "127.0.0.1:0")
	if out, err := kcat(t, s.Addr(), "x\n", "-P", "-t", "typo", "-X", "message.timeout.ms=3000"); err == nil {
		t.Errorf("kcat wrote to a topic that does not exist: %s", out)
	}
}

func kcat(t *testing.T, addr, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kcat", append([]string{"-b", addr, "-X", "message.timeout.ms=30000"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestKcatReadsAndWrites(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "127.0.0.1:0")
	topic(t, s.Addr(), nil)
	if out, err := kcat(t, s.Addr(), "from kcat\n", "-P", "-t", "t", "-k", "k", "-H", "ce_id=0", "-X", "partitioner=murmur2_random", "-z", "zstd"); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	if n := readAll(t, s.Addr()); n != 1 {
		t.Errorf("%d records", n)
	}
	write(t, s.Addr(), 1, 1, 3)
	out, err := kcat(t, s.Addr(), "", "-C", "-t", "t", "-e", "-q", "-f", "%k|%h|%s\n")
	if err != nil || !strings.Contains(out, "k|ce_id=1,ce_partitionkey=k|xxx\n") || !strings.Contains(out, "k|ce_id=0|from kcat\n") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestLargeMessagesFit(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "127.0.0.1:0")
	topic(t, s.Addr(), map[string]string{"max.message.bytes": "2097152"})
	if n := write(t, s.Addr(), 0, 3, 1<<20); n != 3 {
		t.Errorf("%d messages of 1 MiB", n)
	}
	if n := readAll(t, s.Addr()); n != 3 {
		t.Errorf("%d records", n)
	}
}

// alter changes a setting of the topic: retention is given when everything was read, because the broker applies it by itself too.
func alter(t *testing.T, addr, name, value string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Value = name, &value
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, "t"
	resource.Configs = append(resource.Configs, config)
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = append(req.Resources, resource)
	res, err := req.RequestWith(t.Context(), client)
	if err != nil || len(res.Resources) != 1 || res.Resources[0].ErrorCode != 0 {
		t.Fatalf("alter %s: %v, %v", name, res, err)
	}
}

// size is the number of bytes in the folder.
func size(t *testing.T, dir string) int64 {
	t.Helper()
	total := int64(0)
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestRetentionFreesTheDiskAndKeepsTheEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, "127.0.0.1:0")
	topic(t, s.Addr(), map[string]string{"segment.bytes": "500000"})
	write(t, s.Addr(), 0, 100, 100_000)
	consume(t, s.Addr(), 100)
	alter(t, s.Addr(), "retention.bytes", "1000000")
	if err := s.ApplyRetention(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, end := offsets(t, s.Addr())
	if first < 80 || first >= end || end != 100 {
		t.Errorf("log is [%d, %d)", first, end)
	}
	if n := size(t, dir); n > 3_000_000 {
		t.Errorf("folder has %d bytes", n)
	}
	stop(t, s)
	s = start(t, dir, "127.0.0.1:0")
	if f, e := offsets(t, s.Addr()); f != first || e != end {
		t.Errorf("after a restart the log is [%d, %d), was [%d, %d)", f, e, first, end)
	}
}

func TestRetentionOfEverythingKeepsTheOffsets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	topic(t, addr, nil)
	write(t, addr, 0, 10, 10)
	consume(t, addr, 10)
	alter(t, addr, "retention.ms", "1")
	kill()
	s := start(t, dir, "127.0.0.1:0")
	if err := s.ApplyRetention(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, end := offsets(t, s.Addr())
	if end != 10 {
		t.Errorf("log is [%d, %d)", first, end)
	}
	stop(t, s)
	addr, kill = startChild(t, dir)
	if _, e := offsets(t, addr); e != 10 {
		t.Errorf("after a restart the log ends at %d, the next record would get an offset that was used", e)
	}
	kill()
	s = start(t, dir, "127.0.0.1:0")
	if _, e := offsets(t, s.Addr()); e != 10 {
		t.Errorf("after a kill the log ends at %d", e)
	}
	write(t, s.Addr(), 10, 1, 10)
	if got := consume(t, s.Addr(), 1); got != "10" {
		t.Errorf("group goes on with %s", got)
	}
}
