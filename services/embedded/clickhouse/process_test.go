package clickhouse_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/services/embedded/clickhouse"
)

// Tests that need an engine of their own run it in a child, which is this test binary again: a process can open one.

// child plays the part that the parent names. It prints what the parent waits for, one line each.
func child(role string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.DiscardHandler)
	config := clickhouse.Config{Addr: "127.0.0.1:0", DataDir: os.Getenv("CLICKHOUSE_TEST_DIR"), Logger: logger}
	server, err := clickhouse.Start(ctx, config)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("serves", server.Addr())
	switch role {
	case "serve", "serve and stop soon":
		<-ctx.Done()
	case "twice":
		if err := startTwice(ctx, server, config); err != nil {
			fmt.Println("error:", err)
			return 1
		}
	}
	patience := time.Minute
	if role == "serve and stop soon" {
		patience = 2 * time.Second
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := server.Stop(stopping); err != nil {
		fmt.Println("stop:", err)
		return 1
	}
	fmt.Println("stopped")
	return 0
}

// startTwice checks, in a child, that a process has one engine at a time and can have another after it.
func startTwice(ctx context.Context, first *clickhouse.Server, config clickhouse.Config) error {
	second := config
	second.DataDir += "-other"
	if _, err := clickhouse.Start(ctx, second); err == nil || !strings.Contains(err.Error(), "already runs in this process on "+config.DataDir) {
		return fmt.Errorf("a second engine beside the first: %w", err)
	}
	if err := first.Stop(ctx); err != nil {
		return err
	}
	for range 3 {
		again, err := clickhouse.Start(ctx, second)
		if err != nil {
			return fmt.Errorf("a second engine after the first: %w", err)
		}
		response, err := http.Post("http://"+again.Addr(), "", strings.NewReader("CREATE TABLE IF NOT EXISTS t (a UInt8) ENGINE = MergeTree ORDER BY a"))
		if err != nil {
			return err
		}
		response.Body.Close()
		if err := again.Stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// process is a child with an engine.
type process struct {
	command *exec.Cmd
	lines   *bufio.Scanner
	stderr  *bytes.Buffer
	addr    string
}

// spawn starts a child and waits until it serves. An error of its start is returned as its text.
func spawn(t testing.TB, role, dir string) (*process, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), "CLICKHOUSE_TEST_CHILD="+role, "CLICKHOUSE_TEST_DIR="+dir)
	command.Dir = t.TempDir()
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{command: command, lines: bufio.NewScanner(out), stderr: &bytes.Buffer{}}
	command.Stderr = p.stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if command.ProcessState == nil {
			_ = command.Process.Kill()
			_ = command.Wait()
		}
	})
	line := p.line()
	addr, serves := strings.CutPrefix(line, "serves ")
	if !serves {
		_ = command.Wait()
		return nil, line
	}
	p.addr = addr
	return p, ""
}

func (p *process) line() string {
	if !p.lines.Scan() {
		return "end of output: " + p.stderr.String()
	}
	return p.lines.Text()
}

// end waits for the process and returns what it printed after its last line.
func (p *process) end(t testing.TB) string {
	t.Helper()
	var rest []string
	for p.lines.Scan() {
		rest = append(rest, p.lines.Text())
	}
	_ = p.command.Wait()
	return strings.Join(rest, "\n")
}

func (p *process) terminate(t testing.TB) string {
	t.Helper()
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return p.end(t)
}

func (p *process) dsn() string { return "http://" + p.addr + "/default" }

func (p *process) post(t testing.TB, sql string) string {
	t.Helper()
	response, err := plain.Post("http://"+p.addr+"/", "text/plain", strings.NewReader(sql))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", sql, response.StatusCode, body, err)
	}
	return string(body)
}

// The engine must not take the handlers that turn a fault into a panic away from the Go runtime.
func TestGoKeepsItsSignalHandlers(t *testing.T) {
	t.Parallel()
	post(t, "SELECT 1")
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var nothing *process
	t.Log(nothing.addr)
}

func TestRestartKeepsTheData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 3 {
		p, problem := spawn(t, "serve", dir)
		if p == nil {
			t.Fatal(problem)
		}
		if round == 0 {
			p.post(t, "CREATE DATABASE kept")
			p.post(t, "CREATE TABLE kept.t (a UInt64) ENGINE = MergeTree ORDER BY a")
			p.post(t, "CREATE VIEW kept.v AS SELECT sum(a) FROM kept.t")
			p.post(t, "CREATE FUNCTION kept_plus AS x -> x + 1")
			p.post(t, "CREATE TABLE default.d (a String) ENGINE = ReplacingMergeTree ORDER BY a")
		}
		p.post(t, "INSERT INTO kept.t SELECT number FROM numbers(100000)")
		p.post(t, fmt.Sprintf("INSERT INTO default.d VALUES ('round %d')", round))
		want := fmt.Sprintf("%d\t%d\t2\n", (round+1)*100_000, round+1)
		if got := p.post(t, "SELECT (SELECT count() FROM kept.t), (SELECT count() FROM default.d), kept_plus(1)"); got != want {
			t.Errorf("round %d: %q, want %q", round, got, want)
		}
		if end := p.terminate(t); end != "stopped" {
			t.Errorf("round %d: %s", round, end)
		}
	}
}

// Killed while it inserts, merges and changes its schema, the engine opens again with every acknowledged row.
func TestKillKeepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := uint64(0)
	for round := range 4 {
		p, problem := spawn(t, "serve", dir)
		if p == nil {
			t.Fatalf("round %d: the folder does not open after the kill: %s", round, problem)
		}
		if round == 0 {
			p.post(t, "CREATE TABLE default.t (id UInt64, pad String) ENGINE = MergeTree ORDER BY id")
		}
		count, highest := readCounts(t, p)
		if highest < acknowledged || count != highest {
			t.Fatalf("round %d: %d rows up to %d, but %d were acknowledged", round, count, highest, acknowledged)
		}
		acknowledged = insertUntilKilled(t, p, highest, 15+10*round)
	}
	if acknowledged < 100 {
		t.Errorf("only %d rows were acknowledged, the test shows nothing", acknowledged)
	}
}

func readCounts(t testing.TB, p *process) (count, highest uint64) {
	t.Helper()
	fields := strings.Fields(p.post(t, "SELECT count(), max(id) FROM default.t"))
	for i, into := range []*uint64{&count, &highest} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		*into = n
	}
	return count, highest
}

// insertUntilKilled inserts batches of ten rows with the ids after last, kills the process after some of them while the
// next is on its way, and returns the last acknowledged id.
func insertUntilKilled(t testing.TB, p *process, last uint64, batches int) uint64 {
	t.Helper()
	options, err := ch.ParseDSN(p.dsn())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := 0; ; i++ {
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
		if err != nil {
			return last
		}
		for id := last + 1; id <= last+10; id++ {
			if err := batch.Append(id, strings.Repeat("x", 1000)); err != nil {
				t.Fatal(err)
			}
		}
		if i == batches {
			go func() { _ = p.command.Process.Kill() }()
		}
		if err := batch.Send(); err != nil {
			p.end(t)
			return last
		}
		last += 10
	}
}

func TestTwoProcessesOnOneFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, problem := spawn(t, "serve", dir)
	if first == nil {
		t.Fatal(problem)
	}
	_, problem = spawn(t, "serve", dir)
	if !strings.Contains(problem, dir) || !strings.Contains(problem, fmt.Sprintf("process %d", first.command.Process.Pid)) {
		t.Errorf("the second process says %q", problem)
	}
	if err := first.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.end(t)
	third, problem := spawn(t, "serve", dir)
	if third == nil {
		t.Fatalf("the folder stays locked after a kill: %s", problem)
	}
	if end := third.terminate(t); end != "stopped" {
		t.Error(end)
	}
}

func TestOneEngineAtATime(t *testing.T) {
	t.Parallel()
	p, problem := spawn(t, "twice", filepath.Join(t.TempDir(), "data"))
	if p == nil {
		t.Fatal(problem)
	}
	if end := p.end(t); end != "stopped" {
		t.Error(end, p.stderr.String())
	}
}

// Statements that run when Stop's time is over are cancelled, and the folder opens again.
func TestStopCancelsWhatRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, problem := spawn(t, "serve and stop soon", dir)
	if p == nil {
		t.Fatal(problem)
	}
	ended := make(chan error, 1)
	go func() {
		response, err := plain.Post("http://"+p.addr+"/", "text/plain", strings.NewReader("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"))
		if err == nil {
			_, err = io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				err = errors.Join(err, errors.New(response.Status))
			}
		}
		ended <- err
	}()
	eventually(t, "the long query runs", func() bool {
		return p.post(t, "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%' AND query NOT LIKE '%processes%'") == "1\n"
	})
	if end := p.terminate(t); !strings.Contains(end, "running statements were cancelled") {
		t.Errorf("the process said %q", end)
	}
	if err := <-ended; err == nil {
		t.Error("the cancelled query was answered")
	}
	again, problem := spawn(t, "serve", dir)
	if again == nil {
		t.Fatal(problem)
	}
	again.terminate(t)
}

// Stop waits for what can finish in time.
func TestStopWaitsForWhatCanFinish(t *testing.T) {
	t.Parallel()
	p, problem := spawn(t, "serve", t.TempDir())
	if p == nil {
		t.Fatal(problem)
	}
	answers := make(chan string, 1)
	go func() {
		response, err := plain.Post("http://"+p.addr+"/", "text/plain", strings.NewReader("SELECT count() FROM numbers(10) WHERE NOT sleepEachRow(0.5) SETTINGS max_block_size = 1"))
		if err != nil {
			answers <- err.Error()
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		answers <- fmt.Sprint(string(body), err)
	}()
	eventually(t, "the query runs", func() bool {
		return p.post(t, "SELECT count() FROM system.processes WHERE query LIKE '%sleepEachRow%' AND query NOT LIKE '%processes%'") == "1\n"
	})
	if end := p.terminate(t); end != "stopped" {
		t.Error(end)
	}
	if got := <-answers; got != "10\n<nil>" {
		t.Errorf("the query that ran at the stop answered %q", got)
	}
}

// The engine says nothing on the streams of its process, writes nothing outside of its folder, keeps no log tables
// and reads no configuration that lies around.
func TestTheEngineKeepsToItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, problem := spawn(t, "serve", dir)
	if p == nil {
		t.Fatal(problem)
	}
	p.post(t, "CREATE TABLE default.t (a UInt64) ENGINE = MergeTree ORDER BY a")
	p.post(t, "INSERT INTO default.t SELECT number FROM numbers(100000)")
	p.post(t, "SYSTEM FLUSH LOGS")
	if logs := p.post(t, "SELECT groupArray(name || ' ' || engine) FROM system.tables WHERE database = 'system' AND (name LIKE '%_log' OR engine LIKE '%MergeTree')"); logs != "[]\n" {
		t.Errorf("%s log tables", strings.TrimSpace(logs))
	}
	response, err := plain.Post("http://"+p.addr+"/", "text/plain", strings.NewReader("SELECT throwIf(1)"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if end := p.terminate(t); end != "stopped" {
		t.Errorf("stdout has %q besides", end)
	}
	if p.stderr.Len() > 0 {
		t.Errorf("stderr has %q", p.stderr)
	}
	if left := glob(t, filepath.Join(p.command.Dir, "*")); len(left) > 0 {
		t.Errorf("the working directory has %v", left)
	}
	for _, name := range []string{"spool", filepath.Join("engine", "tmp")} {
		if left := glob(t, filepath.Join(dir, name, "*")); len(left) > 0 {
			t.Errorf("%s has %v", name, left)
		}
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && path == dir {
			return nil
		}
		info, err := entry.Info()
		if err == nil && filepath.Dir(path) == dir && info.Mode().Perm()&0o077 != 0 && !entry.IsDir() {
			t.Errorf("%s may be read by others: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestConfigInTheWorkingDirectoryIsNotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cwd := t.TempDir()
	hostile := "<clickhouse><max_server_memory_usage>1</max_server_memory_usage><logger><console>1</console></logger></clickhouse>"
	if err := os.WriteFile(filepath.Join(cwd, "config.xml"), []byte(hostile), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), self)
	command.Dir = cwd
	command.Env = append(os.Environ(), "CLICKHOUSE_TEST_CHILD=once", "CLICKHOUSE_TEST_DIR="+dir)
	out, err := command.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "stopped\n") || strings.Count(string(out), "\n") != 2 {
		t.Errorf("%v: %s", err, out)
	}
}
