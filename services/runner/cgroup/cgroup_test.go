package cgroup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHierarchiesAreFound(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mounts, groups string
		want           []string
	}{
		"hybrid": {
			"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n",
			"5:cpu,cpuacct:/a\n1:name=systemd:/s\n0::/u/v\n",
			[]string{"/sys/fs/cgroup/cpu,cpuacct/a", "/sys/fs/cgroup/systemd/s", "/sys/fs/cgroup/unified/u/v"},
		},
		"a container": {
			"31 23 0:28 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "0::/docker/1/inner\n", []string{"/sys/fs/cgroup/inner"},
		},
		"a mount of something else": {"31 23 0:28 /docker/2 /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "0::/docker/1\n", nil},
		"a name with a space":       {`31 23 0:28 / /mnt/a\040b ro - cgroup2 cgroup rw` + "\n", "0::/\n", []string{"/mnt/a b"}},
		"nothing":                   {"", "", nil},
	} {
		list, err := parse([]byte(test.mounts), []byte(test.groups))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, h := range list {
			got = append(got, h.own)
		}
		slices.Sort(got)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// A group takes its limits or says why not; what is in it dies with it, also who left the session; and nothing of it stays.
func TestAGroupHoldsEverybody(t *testing.T) {
	t.Parallel()
	r := Open("test", t.TempDir(), slog.New(slog.DiscardHandler))
	defer r.Close()
	g, err := r.New("attempt-1", Limits{MemoryBytes: 64 << 20, Processes: 50, CPUMillis: 500})
	var unavailable *UnavailableError
	if errors.As(err, &unavailable) {
		t.Logf("this machine has none: %v", err)
		if g != nil || unavailable.Cause == nil {
			t.Fatalf("a group %v and no reason", g)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	folders := g.Folders()
	// Who is in the group of the test's own makes the way in: a process of a shell that enters, as the launcher does.
	c := exec.Command("sh", "-c", `for f in "$@"; do echo 0 >"$f" || exit 9; done; setsid sleep 600 & exec sleep 600`, "sh")
	c.Args = append(c.Args, g.Join()...)
	if g.v2 != "" {
		c.Args = append(c.Args, g.v2+"/cgroup.procs")
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the group has two", func() bool { return g.Populated() && count(t, folders[0]) == 2 })
	g.Remove() // Too early: it is kept in mind.
	if len(r.left) != 1 {
		t.Error("a group that somebody lives in was removed")
	}
	if err := Find(folders).Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	wait(t, "the group is empty", func() bool { return !Find(folders).Populated() })
	wait(t, "the group goes", func() bool { r.mu.Lock(); defer r.mu.Unlock(); r.retry(); return len(r.left) == 0 })
	for _, folder := range folders {
		if _, err := os.Stat(folder); err == nil {
			t.Errorf("%s is left", folder)
		}
	}
	if Find(folders) != nil {
		t.Error("a group that is gone is found")
	}
}

func count(t *testing.T, folder string) int {
	t.Helper()
	text, err := os.ReadFile(folder + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, b := range text {
		if b == '\n' {
			n++
		}
	}
	return n
}

// wait asks at a pace: the kernel sends no signal.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) { // The kernel sends no signal.
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func BenchmarkNewAndRemove(b *testing.B) {
	r := Open("bench", b.TempDir(), slog.New(slog.DiscardHandler))
	defer r.Close()
	for b.Loop() {
		g, err := r.New("attempt", Limits{})
		if err != nil {
			b.Fatal(err)
		}
		f, err := g.Open()
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
		g.Remove()
	}
}

// A group that was killed is not given to the next attempt; one that was not, is.
func TestOnlyAGroupThatWasNeverKilledIsUsedAgain(t *testing.T) {
	t.Parallel()
	r := Open("spare", t.TempDir(), slog.New(slog.DiscardHandler))
	defer r.Close()
	next := func() *Group {
		g, err := r.New("x", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := next()
	if first == nil {
		t.Logf("this machine has none: %v", r.err)
		return
	}
	first.Remove()
	second := next()
	if second.v2 != first.v2 {
		t.Errorf("a spare group was not used: %s after %s", second.v2, first.v2)
	}
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	second.Remove()
	if third := next(); third.v2 == second.v2 {
		t.Error("a group that was killed is used again")
	} else {
		third.Remove()
	}
}

// movesVariable makes the test binary a supervisor in the group it names.
const movesVariable = "VERBATIM_TEST_GROUP"

func TestMain(m *testing.M) {
	if group := os.Getenv(movesVariable); group != "" {
		os.Exit(playSupervisor(group))
	}
	os.Exit(m.Run())
}

// playSupervisor hands a controller on from a group that it is in.
func playSupervisor(group string) int {
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	if err := os.WriteFile(group+"/cgroup.procs", []byte("0"), 0); err != nil {
		return fail(err)
	}
	r := Open("moves", "/data", slog.New(slog.DiscardHandler))
	if r.own != group || r.v2 == "" {
		return fail(fmt.Errorf("own group %q, folder %q: %w", r.own, r.v2, r.err))
	}
	if err := r.handOn(os.Getenv("VERBATIM_TEST_CONTROLLER")); err != nil {
		return fail(err)
	}
	// What it has become is found again, as after it executed itself anew.
	if again := Open("moves", "/data", slog.New(slog.DiscardHandler)); again.v2 != r.v2 {
		return fail(fmt.Errorf("after the move the folder is %q, before %q", again.v2, r.v2))
	}
	text, err := os.ReadFile(r.v2 + "/cgroup.subtree_control")
	if err != nil {
		return fail(err)
	}
	fmt.Printf("handed on: %s", text)
	return 0
}

// A supervisor that is alone in its group goes to one below, so that it can hand controllers on; beside somebody else it does not, and says why.
func TestASupervisorMakesRoomForControllers(t *testing.T) {
	t.Parallel()
	list, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	controller, top := "", ""
	for _, h := range list {
		if text, err := os.ReadFile(h.own + "/cgroup.subtree_control"); h.v2 && err == nil && len(text) > 1 {
			controller, top = strings.Fields(string(text))[0], h.own
		}
		if text, err := os.ReadFile(h.own + "/cgroup.controllers"); h.v2 && err == nil && len(strings.Fields(string(text))) > 0 && controller == "" {
			name := strings.Fields(string(text))[0]
			if os.WriteFile(h.own+"/cgroup.subtree_control", []byte("+"+name), 0) == nil {
				controller, top = name, h.own
				t.Cleanup(func() { _ = os.WriteFile(h.own+"/cgroup.subtree_control", []byte("-"+name), 0) })
			}
		}
	}
	group := top + "/verbatim-test-moves"
	if controller == "" || os.Mkdir(group, 0o755) != nil {
		t.Log("this machine has no controller of version 2 that could be handed on")
		return
	}
	t.Cleanup(func() {
		wait(t, "the groups go", func() bool {
			folders, _ := filepath.Glob(group + "/*/*")
			more, _ := filepath.Glob(group + "/*")
			for _, folder := range append(folders, more...) {
				_ = os.Remove(folder) // Files of the kernel stay.
			}
			return os.Remove(group) == nil
		})
	})
	run := func() string {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command(self)
		c.Env = append(os.Environ(), movesVariable+"="+group, "VERBATIM_TEST_CONTROLLER="+controller)
		out, _ := c.CombinedOutput()
		return string(out)
	}
	if out := run(); !strings.HasPrefix(out, "handed on: "+controller) {
		t.Errorf("alone: %s", out)
	}
	below, _ := filepath.Glob(group + "/verbatim-*/cgroup.subtree_control")
	for _, file := range append(below, group+"/cgroup.subtree_control") {
		if err := os.WriteFile(file, []byte("-"+controller), 0); err != nil {
			t.Fatal(err)
		}
	}
	other := exec.Command("sh", "-c", `echo 0 >"$0/cgroup.procs" && echo in && exec sleep 600`, group)
	in, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Read(make([]byte, 8))
	if out := run(); !strings.Contains(out, "not the runner's") || !strings.Contains(out, "Delegate") {
		t.Errorf("beside somebody else: %s", out)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
}
