package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds everything a scenario waits for.
const patience = 5 * time.Minute

type stackKey struct{}

// stack is the "verbatim up" of one scenario.
type stack struct {
	process *exec.Cmd
	ended   chan struct{}
	err     error
}

func stackOf(ts *testscript.TestScript) *stack { return ts.Value(stackKey{}).(*stack) }

// up starts "verbatim up" on free ports with the scenario's data folder and waits until it is ready. It sets
// VERBATIM_SERVER, HTTP, KAFKA and CLICKHOUSE.
//
//	up [FLAG…]
func up(ts *testscript.TestScript, neg bool, args []string) {
	s := stackOf(ts)
	if neg || s.process != nil {
		ts.Fatalf("usage: up [FLAG…], once until down or kill9")
	}
	ts.Check(s.start(environ(ts), ts.Getenv("WORK"), ts.Getenv("VERBATIM_DATA"), args))
	ts.Defer(func() { _ = s.stop(syscall.SIGKILL) }) // A failing scenario must not leave its stack behind.
	s.ready(ts)
}

// start starts the program in dir, where its log goes too.
func (s *stack) start(env []string, dir, data string, args []string) error {
	log, err := os.OpenFile(filepath.Join(dir, "up.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	program, err := exec.LookPath("verbatim")
	if err != nil {
		return err
	}
	flags := []string{"up", "--data", data, "--http", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--clickhouse", "127.0.0.1:0"}
	c := exec.Command(program, append(flags, args...)...)
	c.Env, c.Dir, c.Stdout, c.Stderr = env, dir, log, log
	c.SysProcAttr = attributes()
	s.process, s.ended = c, make(chan struct{})
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that started the process for the end of the parent (prctl(2),
		// PR_SET_PDEATHSIG); a locked thread lives as long as this goroutine.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			s.err = c.Wait()
		}
		close(s.ended)
	}()
	if err := <-started; err != nil {
		s.process = nil
		return err
	}
	return nil
}

// ready waits until the stack of the scenario's data folder is ready, and sets VERBATIM_SERVER, HTTP, KAFKA and
// CLICKHOUSE.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: ready")
	}
	stackOf(ts).ready(ts)
}

func (s *stack) ready(ts *testscript.TestScript) {
	addresses, err := s.await(ts.Getenv("VERBATIM_DATA"), ts.MkAbs("up.log"))
	ts.Check(err)
	addresses.setenv(ts)
}

// addresses are what a stack writes to endpoints.json.
type addresses struct{ HTTP, Kafka, ClickHouse string }

func (a addresses) setenv(ts *testscript.TestScript) {
	ts.Setenv("VERBATIM_SERVER", "http://"+a.HTTP)
	ts.Setenv("HTTP", a.HTTP)
	ts.Setenv("KAFKA", a.Kafka)
	ts.Setenv("CLICKHOUSE", a.ClickHouse)
}

// await waits until the stack on the data folder is ready.
func (s *stack) await(data, log string) (addresses, error) {
	var a addresses
	err := poll(func() error {
		select {
		case <-s.ended: // Never, when the scenario started its stack itself.
			said, _ := os.ReadFile(log)
			return fatalError{fmt.Errorf("the stack ended: %w\n%s", s.err, said)}
		default:
		}
		text, err := os.ReadFile(filepath.Join(data, "endpoints.json"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &a); err != nil {
			return fatalError{fmt.Errorf("endpoints.json: %w", err)}
		}
		return get("http://" + a.HTTP + "/readyz")
	})
	return a, err
}

// down sends SIGTERM to the stack and wants it to end with exit code 0.
func down(ts *testscript.TestScript, neg bool, args []string) {
	s := stackOf(ts)
	if neg || len(args) > 0 || s.process == nil {
		ts.Fatalf("usage: down, after up")
	}
	if err := s.stop(syscall.SIGTERM); err != nil {
		ts.Fatalf("the stack did not stop cleanly: %v\n%s", err, ts.ReadFile("up.log"))
	}
}

// kill9 kills the stack with SIGKILL.
func kill9(ts *testscript.TestScript, neg bool, args []string) {
	s := stackOf(ts)
	if neg || len(args) > 0 || s.process == nil {
		ts.Fatalf("usage: kill9, after up")
	}
	_ = s.stop(syscall.SIGKILL) // It was killed; its exit status says so.
}

func (s *stack) stop(signal syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	_ = s.process.Process.Signal(signal) // It may have ended.
	select {
	case <-s.ended:
	case <-time.After(patience):
		_ = s.process.Process.Kill()
		<-s.ended
		s.process = nil
		return fmt.Errorf("still running %s after %s", patience, signal)
	}
	s.process = nil
	return s.err
}

// field wants a field of a JSON object in a file to have a value. The value is JSON; a path is joined by dots.
//
//	field FILE PATH JSON
func field(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: field FILE PATH JSON")
	}
	var object any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &object))
	for _, name := range strings.Split(args[1], ".") {
		members, ok := object.(map[string]any)
		if !ok {
			ts.Fatalf("%s of %s is no object", name, args[0])
		}
		value, ok := members[name]
		if !ok {
			ts.Fatalf("%s has no field %s", args[0], args[1])
		}
		object = value
	}
	var want any
	ts.Check(json.Unmarshal([]byte(args[2]), &want))
	got, err := json.Marshal(object)
	ts.Check(err)
	wanted, err := json.Marshal(want)
	ts.Check(err)
	if bytes.Equal(got, wanted) == neg {
		ts.Fatalf("%s is %s, want (not: %v) %s", args[1], got, neg, wanted)
	}
}

// until runs a command again until it succeeds and, if given, its standard output holds the text.
//
//	until TEXT COMMAND [ARG…]
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until TEXT COMMAND [ARG…]")
	}
	ts.Check(poll(func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if out := ts.ReadFile("stdout"); !strings.Contains(out, args[0]) {
			return fmt.Errorf("no %q in %q", args[0], out)
		}
		return nil
	}))
}

// repeat writes a text many times to a file.
//
//	repeat FILE COUNT TEXT
func repeat(ts *testscript.TestScript, neg bool, args []string) {
	var count int
	if neg || len(args) != 3 {
		ts.Fatalf("usage: repeat FILE COUNT TEXT")
	}
	_, err := fmt.Sscan(args[1], &count)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.Repeat([]byte(args[2]), count), 0o644))
}

// sha256eq wants files to have the same bytes, without printing them.
//
//	sha256eq FILE FILE…
func sha256eq(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: sha256eq FILE FILE…")
	}
	first := sha256.Sum256([]byte(ts.ReadFile(args[0])))
	for _, name := range args[1:] {
		text := ts.ReadFile(name)
		if same := sha256.Sum256([]byte(text)) == first; same == neg {
			ts.Fatalf("%s (%d bytes) and %s (%d bytes): same bytes is %v", args[0], len(ts.ReadFile(args[0])), name, len(text), same)
		}
	}
}

// fatalError ends a poll at once.
type fatalError struct{ error }

// poll tries until it works, fails for good, or patience ends.
func poll(try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if errors.As(err, &fatalError{}) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // The pace of asking another process, which sends no signal.
	}
}

func get(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// passed are the variables that a stack gets of its scenario's environment.
var passed = []string{
	"PATH", "HOME", "TMPDIR", "VERBATIM_LIBCHDB", "VERBATIM_CACHE", "XDG_CACHE_HOME", "GOCOVERDIR", "GORACE",
	"VERBATIM_KAFKA_BROKER", "VERBATIM_TOPIC_PREFIX",
}

func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range passed {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
