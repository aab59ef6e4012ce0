package process_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
)

// limited runs a script with limits and returns what it wrote.
func limited(t *testing.T, s process.Spec) string {
	t.Helper()
	p, err := process.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	out, err := io.ReadAll(p.Stdout)
	said, _ := io.ReadAll(p.Stderr)
	_, _ = p.Stdout.Close(), p.Stderr.Close()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(); err != nil || e.Code != 0 {
		t.Fatalf("ended with %+v, %v: %s%s", e, err, out, said)
	}
	return string(out)
}

func TestLimitsHoldFromTheFirstInstruction(t *testing.T) {
	t.Parallel()
	out := limited(t, process.Spec{
		Argv:        []string{"/bin/sh", "-c", `ulimit -n; ulimit -Hn; ulimit -c; umask; grep NoNewPrivs /proc/self/status; echo "$0|$1|$A"; ls /proc/self/fd | wc -l; tr '\0' ' ' </proc/$$/cmdline`, "zero", "a b"},
		Environment: map[string]string{"PATH": "/bin:/usr/bin", "A": "x=y", "GOGC": "77"}, Directory: "/",
		Limits: &executionv1.Limits{OpenFiles: proto.Uint64(99), CoreBytes: proto.Uint64(0), Umask: proto.Uint32(0o31), AddressSpaceBytes: proto.Uint64(64 << 20)},
	})
	lines := strings.Split(out, "\n")
	if got := strings.Join(lines[:6], " "); got != "99 99 0 0031 NoNewPrivs:\t1 zero|a b|x=y" {
		t.Errorf("limits are %q", got)
	}
	if lines[6] != "4" { // Its three streams, and the folder it lists.
		t.Errorf("it has %s descriptors", lines[6])
	}
	if !strings.HasPrefix(lines[7], "/bin/sh -c") {
		t.Errorf("its arguments are %q", lines[7])
	}
}

func TestALauncherLeavesErrorsAsTheyAre(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := dir + "/no-interpreter"
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	garbage := dir + "/garbage"
	if err := os.WriteFile(garbage, []byte("\x00\x01"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{script}, {garbage}, {dir + "/nothing"}, {"no-such-program"}, {"/bin/echo", strings.Repeat("x", 4<<20)}} {
		_, plain := process.Start(process.Spec{Argv: argv, Directory: "/"})
		_, limited := process.Start(process.Spec{Argv: argv, Directory: "/", Limits: &executionv1.Limits{OpenFiles: proto.Uint64(64)}})
		var a, b *process.StartError
		if !errors.As(plain, &a) || !errors.As(limited, &b) || *a != *b {
			t.Errorf("%.40q: without a limit %v, with one %v", argv[0], plain, limited)
		}
	}
}

func TestWhatCannotBeHadIsNotStarted(t *testing.T) {
	t.Parallel()
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*executionv1.Limits{
		// Also root cannot have more than the system has (/proc/sys/fs/nr_open).
		"too many files": {OpenFiles: proto.Uint64(1 << 40)},
		"no such user":   {User: "no-such-user"},
		"no such group":  {Group: "no-such-group"},
		"no group":       {User: "4000000000"},
	} {
		marker := t.TempDir() + "/started"
		_, err := process.Start(process.Spec{Argv: []string{"/bin/sh", "-c", "touch " + marker}, Directory: "/", Limits: l})
		var start *process.StartError
		if !errors.As(err, &start) || start.Reason != executionv1.StartFailureReason_START_FAILURE_REASON_LIMIT_UNAVAILABLE || start.Message == "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(marker); err == nil {
			t.Errorf("%s: it ran", name)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	for name, l := range map[string]*executionv1.Limits{
		"plain": nil, "new-privileges": {AllowNewPrivileges: true}, "launcher": {Umask: proto.Uint32(0o22)},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := process.Start(process.Spec{Argv: []string{"/bin/true"}, Directory: "/", Limits: l})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Wait(); err != nil {
					b.Fatal(err)
				}
				_, _ = p.Stdout.Close(), p.Stderr.Close()
				p.Release()
			}
		})
	}
}
