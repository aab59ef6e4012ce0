package runner_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/runner"
)

func countClaims(n *int) runner.Claim {
	return func(context.Context, *message.Message) error {
		*n++
		return nil
	}
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "#!/bin/sh\n", 0o644)
	garbage := write("garbage", "\x01\x02\x03", 0o755)
	orphan := write("orphan", "#!/no/such/interpreter -x\n", 0o755)
	const (
		notFound      = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND
		notExecutable = executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_EXECUTABLE
		badDirectory  = executionv1.StartFailureReason_START_FAILURE_REASON_DIRECTORY
		noResources   = executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES
		unspecified   = executionv1.StartFailureReason_START_FAILURE_REASON_UNSPECIFIED
	)
	run := func(argv ...string) *executionv1.Prepared { return &executionv1.Prepared{Argv: argv} }
	with := func(p *executionv1.Prepared, change func(*executionv1.Prepared)) *executionv1.Prepared {
		change(p)
		return p
	}
	for name, c := range map[string]struct {
		spec    *executionv1.Prepared
		reason  executionv1.StartFailureReason
		errno   syscall.Errno
		message string
	}{
		"not in PATH":      {run("no-such-program"), notFound, syscall.ENOENT, `command "no-such-program" not found in PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`},
		"own PATH":         {with(run("sh"), func(p *executionv1.Prepared) { p.Environment = map[string]string{"PATH": dir} }), notFound, syscall.ENOENT, `command "sh" not found in PATH=` + dir},
		"no such path":     {run("/no/such/program"), notFound, syscall.ENOENT, `command "/no/such/program" not found`},
		"relative":         {run("./x"), notFound, syscall.ENOENT, `command "./x" not found (working directory "` + f.data},
		"no permission":    {run(plain), notExecutable, syscall.EACCES, `"` + plain + `" is not executable: permission denied`},
		"only one in PATH": {with(run("plain"), func(p *executionv1.Prepared) { p.Environment = map[string]string{"PATH": "/no:" + dir} }), notExecutable, syscall.EACCES, `"` + plain + `" is not executable: permission denied`},
		"a directory":      {run(dir), notExecutable, syscall.EACCES, `"` + dir + `" is not executable: permission denied`},
		"no program":       {run(garbage), notExecutable, syscall.ENOEXEC, `"` + garbage + `" is not executable: exec format error`},
		"no interpreter":   {run(orphan), notExecutable, syscall.ENOENT, `"` + orphan + `" is not executable: its interpreter "/no/such/interpreter" does not exist`},
		"too long":         {run("true", strings.Repeat("x", 3<<20)), noResources, syscall.E2BIG, `have 31`},
		"empty":            {run(), notFound, syscall.EINVAL, `the command is empty`},
		"empty program":    {run("", "x"), notFound, syscall.EINVAL, `the command is empty`},
		"NUL in argument":  {run("echo", "a\x00b"), notExecutable, syscall.EINVAL, `argument 1 of the command has a NUL byte`},
		"NUL in variable":  {with(run("true"), func(p *executionv1.Prepared) { p.Environment = map[string]string{"A": "x\x00secret"} }), notExecutable, syscall.EINVAL, `environment variable "A" has a NUL byte`},
		"bad variable":     {with(run("true"), func(p *executionv1.Prepared) { p.Environment = map[string]string{"A=B": "x"} }), notExecutable, syscall.EINVAL, `environment variable "A=B": a name`},
		"no directory":     {with(run("true"), func(p *executionv1.Prepared) { p.Directory = "/no/such" }), badDirectory, syscall.ENOENT, `working directory "/no/such": no such file or directory`},
		"file as one":      {with(run("true"), func(p *executionv1.Prepared) { p.Directory = plain }), badDirectory, syscall.ENOTDIR, `working directory "` + plain + `": not a directory`},
		"relative one":     {with(run("true"), func(p *executionv1.Prepared) { p.Directory = "tmp" }), badDirectory, syscall.EINVAL, `working directory "tmp" is no absolute path`},
		"NUL in directory": {with(run("true"), func(p *executionv1.Prepared) { p.Directory = "/a\x00" }), badDirectory, syscall.EINVAL, `is no absolute path`},
		"negative timeout": {with(run("true"), func(p *executionv1.Prepared) { p.Timeout = durationpb.New(-time.Second) }), unspecified, 0, `timeout of -1s in the launch spec is no duration`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.log.tell(t, f.start(t, c.spec))
			got := one[*executionv1.StartFailed](t, s)
			if got.GetReason() != c.reason || got.GetErrno() != int32(c.errno) || !strings.Contains(got.GetMessage(), c.message) {
				t.Errorf("got %v", got)
			}
			if strings.Contains(got.GetMessage(), "\n") || strings.Contains(got.GetMessage(), "secret") || got.GetHost() != "h1" || got.GetRunner() != "r1" {
				t.Errorf("got %v", got)
			}
			if len(s.facts) != 2 || s.seals[stdout].GetCapturedBytes() != 0 {
				t.Errorf("facts:\n%s", describe(s.facts))
			}
		})
	}
}

func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	s := inOtherRunner(t, "runner-without-descriptors")
	failed := one[*executionv1.StartFailed](t, s)
	if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES || failed.GetErrno() != int32(syscall.EMFILE) {
		t.Errorf("start: %v", failed)
	}
}

func TestNoWorkingDirectoryCanBeMade(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	work := f.data + "/work"
	if err := errors.Join(os.Remove(work), os.WriteFile(work, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := f.log.tell(t, f.start(t, shell(`echo never`)))
	failed := one[*executionv1.StartFailed](t, s)
	if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES || !strings.Contains(failed.GetMessage(), "make working directory") {
		t.Errorf("start: %v", failed)
	}
	if err := errors.Join(os.Remove(work), os.Mkdir(work, 0o700)); err != nil {
		t.Fatal(err)
	}
	f.log.tell(t, f.start(t, shell(`echo again`)))
}

func TestProgramIsFoundAsTheChildWould(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	dir := t.TempDir()
	for name, text := range map[string]string{"bin/tool": "#!/bin/sh\necho found $0\n", "tool": "#!/bin/sh\necho here $0\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ program, path, want string }{
		{"tool", "bin:/bin", "found bin/tool\n"}, // Relative to the working directory, as execvp(3) does it.
		{"tool", ":/bin", "here ./tool\n"},
		{"./bin/tool", "/bin", "found ./bin/tool\n"},
	} {
		s := f.log.tell(t, f.start(t, &executionv1.Prepared{Argv: []string{c.program}, Directory: dir, Environment: map[string]string{"PATH": c.path}}))
		if got := string(s.output[stdout]); got != c.want {
			t.Errorf("%s with PATH=%s: %q, want %q", c.program, c.path, got, c.want)
		}
	}
}

func TestDirectoryThatWasAskedForIsKept(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	dir := t.TempDir()
	spec := shell(`pwd; echo $HOME; echo x >file`)
	spec.Directory = dir
	s := f.log.tell(t, f.start(t, spec))
	if got := string(s.output[stdout]); got != dir+"\n/tmp\n" {
		t.Errorf("stdout %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}

// The fixture checks at its end that no working directory is left.
func TestWorkingDirectoryIsRemovedWhateverIsInIt(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	f.log.tell(t, f.start(t, shell(`mkdir -p a/b/c; echo x >a/b/c/d; ln -s / root; chmod 0500 a/b/c; chmod 0 a`)))
}

func TestProcessHasAWorldOfItsOwn(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	if s := f.log.tell(t, f.start(t, child("group"))); string(s.output[stdout]) != "true true" {
		t.Errorf("leads its group and its session: %q", s.output[stdout])
	}
	spec := child("blocking")
	spec.Stdin = []byte("x")
	if s := f.log.tell(t, f.start(t, spec)); len(s.output[stdout]) != 0 {
		t.Errorf("descriptors in non-blocking mode: %s", s.output[stdout])
	}
	// ls opens one more, for the directory that it lists.
	if s := inOtherRunner(t, "runner-with-inherited"); string(s.output[stdout]) != "0\n1\n2\n3\n" {
		t.Errorf("open descriptors: %q", s.output[stdout])
	}
}

func TestWhatIsNoWorkIsPermanent(t *testing.T) {
	t.Parallel()
	claims := 0
	f := newRunnerWith(t, countClaims(&claims), nil)
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	other, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(id, 0, 1, time.Now(), &executionv1.CancelRequested{})
	if err != nil {
		t.Fatal(err)
	}
	cancel, err := codec.ToMessage(other)
	if err != nil {
		t.Fatal(err)
	}
	cut := preparedAs(t, id, shell("true"))
	cut.Payload = cut.Payload[:len(cut.Payload)-1]
	for name, m := range map[string]*message.Message{
		"empty": message.NewMessage("x", nil), "another fact": cancel, "cut payload": cut,
	} {
		if err := f.Handle(m); !failure.IsPermanent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if claims != 0 || len(f.Running()) != 0 {
		t.Errorf("%d claims, running %v", claims, f.Running())
	}
}

func TestRefusedClaimStartsNothing(t *testing.T) {
	t.Parallel()
	refused := errors.New("generation is over")
	answer := refused
	f := newRunnerWith(t, func(context.Context, *message.Message) error { return answer }, func(c *runner.Config) { c.Slots = 1 })
	m, id := prepared(t, shell("echo x"))
	if err := f.Handle(m); !errors.Is(err, refused) || failure.IsPermanent(err) {
		t.Errorf("handle: %v", err)
	}
	if n := len(f.log.of(id)); n != 0 {
		t.Errorf("%d facts about an attempt that is not ours", n)
	}
	answer = nil // It comes again, and this time it is ours; the slot is free.
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	f.log.tell(t, id)
}

func TestClaimPanics(t *testing.T) {
	t.Parallel()
	panics := true
	f := newRunnerWith(t, func(context.Context, *message.Message) error {
		if panics {
			panic("nil map")
		}
		return nil
	}, func(c *runner.Config) { c.Slots = 1 })
	m, id := prepared(t, shell("echo x"))
	func() {
		defer func() { _ = recover() }()
		_ = f.Handle(m)
	}()
	panics = false
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	f.log.tell(t, id)
}

func TestSecondDeliveryStartsNothing(t *testing.T) {
	t.Parallel()
	claims := 0
	f := newRunnerWith(t, countClaims(&claims), nil)
	file := filepath.Join(t.TempDir(), "starts")
	fifo := mkfifo(t)
	m, id := prepared(t, shell(`echo start >>`+file+`; echo up; read x <`+fifo))
	if err := f.Handle(m); err != nil {
		t.Fatal(err)
	}
	f.log.awaitOutput(t, id, stdout, "up")
	if err := f.Handle(m); err != nil { // While it runs.
		t.Fatal(err)
	}
	writeFIFO(t, fifo, "go\n")
	s := f.log.tell(t, id)
	if err := f.Handle(m); err != nil { // After it ended.
		t.Fatal(err)
	}
	if again := f.log.tell(t, id); len(again.facts) != len(s.facts) || claims != 3 {
		t.Errorf("%d claims, facts:\n%s", claims, describe(again.facts))
	}
	if starts, err := os.ReadFile(file); err != nil || string(starts) != "start\n" {
		t.Errorf("started %q %v", starts, err)
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	f := newRunner(t, func(c *runner.Config) { c.Slots = 2 })
	fifo := mkfifo(t)
	for range 2 {
		f.start(t, shell(`read x <`+fifo))
	}
	m, id := prepared(t, shell("echo third"))
	ctx, cancel := context.WithCancel(t.Context())
	m.SetContext(ctx)
	handled := make(chan error, 1)
	go func() { handled <- f.Handle(m) }()
	select {
	case err := <-handled:
		t.Fatalf("a third attempt with two slots: %v", err)
	case <-time.After(50 * time.Millisecond): // Time in which a third start would show itself.
	}
	cancel()
	if err := <-handled; !errors.Is(err, context.Canceled) {
		t.Errorf("the message's context ended, and Handle says %v", err)
	}
	m = preparedAs(t, id, shell("echo third"))
	go func() { handled <- f.Handle(m) }()
	writeFIFO(t, fifo, "a\nb\n")
	if err := <-handled; err != nil {
		t.Fatal(err)
	}
	f.log.tell(t, id)
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	err := runner.Config{ID: "a/b", DataDir: "data", Slots: -1, Grace: -1, ChunkBytes: 2 << 20}.Validate()
	for _, want := range []string{`runner id "a/b"`, `data directory "data"`, "slots -1", "grace -1ns", "chunk size 2097152"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	if _, err := runner.New(runner.Config{ID: "r1", DataDir: t.TempDir()}, nil, nil); err == nil {
		t.Error("a runner without publisher and claim")
	}
}

// What was to be started by a time that has passed is not started: others have said that it failed.
func TestStartExpired(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	for late, want := range map[time.Duration]bool{time.Hour: true, -time.Second: false} {
		spec := shell("echo x")
		spec.StartBy = timestamppb.New(time.Now().Add(late))
		s := f.log.tell(t, f.start(t, spec))
		if started := len(all[*executionv1.ProcessStarted](s)) == 1; started != want {
			t.Errorf("%s before its time it was started: %v", late, started)
		}
		if want {
			continue
		}
		if d := one[*executionv1.StartFailed](t, s); d.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED {
			t.Errorf("%v", d)
		}
		one[*executionv1.OutputSealed](t, s)
	}
}
