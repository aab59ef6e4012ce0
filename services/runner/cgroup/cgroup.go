package cgroup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Limits are what the kernel is to hold an attempt to, all its processes together. 0 is no limit.
type Limits struct {
	MemoryBytes uint64
	CPUMillis   uint64 // Thousandths of one processor.
	Processes   uint64
}

// UnavailableError says that a limit cannot be had on this machine.
type UnavailableError struct {
	What  string
	Cause error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("a limit of %s cannot be had on this runner: %v", e.What, e.Cause)
}

func (e *UnavailableError) Unwrap() error { return e.Cause }

// Root is where the groups of attempts are made. It is safe for concurrent use.
type Root struct {
	logger *slog.Logger
	name   string

	mu    sync.Mutex
	v2    string            // The folder for groups of version 2, or empty.
	v1    map[string]string // By controller.
	ready map[string]error  // Of controllers of version 2 that were asked for.
	own   string            // The group of this process in version 2.
	err   error             // Why there is no v2.
	left  [][]string        // Groups that had somebody in them when they were to go.
	spare []string          // Groups of version 2 without limits, empty, to be used again.
	made  int               // How many of those were made.
}

// maxSpare bounds the groups that are kept for use. Making and removing one costs a quarter of starting a short command.
const maxSpare = 256

// controllers that are used.
var controllers = []string{"memory", "cpu", "pids"}

// Open looks at what there is. It does not fail: what is not there is said when it is asked for. The data folder is what tells the
// groups of this runner from those of others.
func Open(runner, dataFolder string, l *slog.Logger) *Root {
	sum := sha256.Sum256([]byte(dataFolder))
	r := &Root{logger: l, name: "verbatim-" + runner + "-" + hex.EncodeToString(sum[:4]), v1: make(map[string]string), ready: make(map[string]error)}
	list, err := hierarchies()
	if err != nil {
		r.err = fmt.Errorf("find the control groups: %w", err)
		return r
	}
	r.err = errors.New("no control groups of version 2 are mounted")
	for _, h := range list {
		if h.v2 {
			r.openV2(h.own)
			continue
		}
		for _, c := range h.controllers {
			if slices.Contains(controllers, c) {
				r.v1[c] = filepath.Join(h.own, r.name)
			}
		}
	}
	return r
}

// supervisorGroup is where this process goes when it has to leave its group to others.
const supervisorGroup = "supervisor"

func (r *Root) openV2(own string) {
	r.own = own
	folder := filepath.Join(own, r.name)
	if filepath.Base(own) == supervisorGroup && filepath.Base(filepath.Dir(own)) == r.name {
		folder = filepath.Dir(own) // It went there before it executed itself again.
	}
	if err := makeFolder(folder); err != nil {
		r.err = fmt.Errorf("make a control group: %w", err)
		return
	}
	r.v2, r.err = folder, nil
}

func makeFolder(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Group is an attempt's group. In a hierarchy of version 2 there is one folder, in those of version 1 one each.
type Group struct {
	root    *Root
	v2      string
	folders []string // All of them.
	memory  string   // The folder with the memory controller, if limited.
	isV2    bool     // Of memory.
	killed  atomic.Bool
}

// New makes a group. The error is an *UnavailableError, and nothing is left behind. Without limits there may be no group: nil.
func (r *Root) New(name string, l Limits) (*Group, error) {
	if r == nil {
		if l != (Limits{}) {
			return nil, &UnavailableError{"memory, cpu or pids", errors.New("it runs without control groups")}
		}
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retry()
	g := &Group{root: r}
	if l == (Limits{}) {
		if r.v2 == "" {
			return nil, nil
		}
		var err error
		if g.v2, err = r.unlimited(); err != nil {
			r.logger.Warn("no control group for an attempt", "group", r.v2, "error", err)
			return nil, nil
		}
		g.folders = []string{g.v2}
		return g, nil
	}
	if r.v2 != "" {
		g.v2 = filepath.Join(r.v2, name)
		if err := makeFolder(g.v2); err != nil {
			r.logger.Warn("no control group for an attempt", "group", g.v2, "error", err)
			g.v2 = ""
		} else {
			g.folders = append(g.folders, g.v2)
		}
	}
	for _, limit := range []struct {
		controller, what string
		value            uint64
	}{{"memory", "memory", l.MemoryBytes}, {"cpu", "cpu", l.CPUMillis}, {"pids", "pids", l.Processes}} {
		if limit.value == 0 {
			continue
		}
		if err := g.limit(limit.controller, name, limit.value); err != nil {
			_ = remove(g.folders)
			return nil, &UnavailableError{limit.what, err}
		}
	}
	return g, nil
}

// unlimited returns a group without limits: a spare one, or a fresh one. The lock is held.
func (r *Root) unlimited() (string, error) {
	if last := len(r.spare) - 1; last >= 0 {
		folder := r.spare[last]
		r.spare = r.spare[:last]
		return folder, nil
	}
	for {
		r.made++
		folder := filepath.Join(r.v2, "unlimited-"+strconv.Itoa(r.made))
		// One that is there may have somebody in it, whom a former supervisor left.
		if err := os.Mkdir(folder, 0o755); !errors.Is(err, fs.ErrExist) {
			return folder, err
		}
	}
}

// spares reports whether a group goes to the spare ones. The lock is held.
func (r *Root) spares(folders []string) bool {
	if r.v2 == "" || len(folders) != 1 || len(r.spare) >= maxSpare || !strings.HasPrefix(folders[0], filepath.Join(r.v2, "unlimited-")) {
		return false
	}
	text, err := os.ReadFile(filepath.Join(folders[0], "cgroup.events"))
	if err != nil || !strings.Contains(string(text), "populated 0") {
		return false
	}
	r.spare = append(r.spare, folders[0])
	return true
}

// limit sets one limit, in the version that has its controller. The root's lock is held.
func (g *Group) limit(controller, name string, value uint64) error {
	v2Err := g.root.err
	if g.v2 != "" {
		if v2Err = g.root.handOn(controller); v2Err == nil {
			return g.write(g.v2, controller, value, true)
		}
	}
	top, bound := g.root.v1[controller]
	if !bound {
		if v2Err == nil {
			v2Err = errors.New("the runner may not make control groups")
		}
		return v2Err
	}
	folder := filepath.Join(top, name)
	if err := errors.Join(makeFolder(top), makeFolder(folder)); err != nil {
		return err
	}
	g.folders = append(g.folders, folder)
	return g.write(folder, controller, value, false)
}

// period is the time for which processor time is counted, in microseconds: the kernel's default.
const period = 100_000

func (g *Group) write(folder, controller string, value uint64, v2 bool) error {
	text := strconv.FormatUint(value, 10)
	set := func(file, text string) error { return os.WriteFile(filepath.Join(folder, file), []byte(text), 0) }
	quota := strconv.FormatUint(max(1000, value*period/1000), 10)
	switch controller {
	case "memory":
		g.memory, g.isV2 = folder, v2
		if !v2 {
			err := set("memory.limit_in_bytes", text)
			// Where swap is counted, both together have the same limit.
			_ = set("memory.memsw.limit_in_bytes", text)
			return err
		}
		_ = set("memory.swap.max", "0") // There may be no swap to limit.
		return set("memory.max", text)
	case "cpu":
		if v2 {
			return set("cpu.max", quota+" "+strconv.Itoa(period))
		}
		return errors.Join(set("cpu.cfs_period_us", strconv.Itoa(period)), set("cpu.cfs_quota_us", quota))
	default:
		return set("pids.max", text)
	}
}

// handOn makes a controller of version 2 usable in the groups of attempts.
func (r *Root) handOn(controller string) error {
	err, known := r.ready[controller]
	if !known {
		err = r.enable(controller)
		r.ready[controller] = err
	}
	return err
}

func (r *Root) enable(controller string) error {
	parent := filepath.Dir(r.v2)
	has := func(folder, file string) bool {
		text, _ := os.ReadFile(filepath.Join(folder, file))
		return slices.Contains(strings.Fields(string(text)), controller)
	}
	if !has(parent, "cgroup.controllers") {
		return fmt.Errorf("controller %s is not there in control group %s", controller, parent)
	}
	if !has(parent, "cgroup.subtree_control") {
		err := handDown(parent, controller)
		if errors.Is(err, syscall.EBUSY) {
			if err = r.moveOut(parent); err == nil {
				err = handDown(parent, controller)
			}
		}
		if err != nil {
			return fmt.Errorf("hand on controller %s in control group %s (run the runner in a group of its own, with systemd by Delegate=yes): %w", controller, parent, err)
		}
	}
	if !has(r.v2, "cgroup.subtree_control") {
		if err := handDown(r.v2, controller); err != nil {
			return fmt.Errorf("hand on controller %s in control group %s: %w", controller, r.v2, err)
		}
	}
	return nil
}

func handDown(folder, controller string) error {
	return os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte("+"+controller), 0)
}

// moveOut moves this process and its worker out of its group, when nobody else is in it.
func (r *Root) moveOut(parent string) error {
	text, err := os.ReadFile(filepath.Join(parent, "cgroup.procs"))
	if err != nil {
		return err
	}
	pids := strings.Fields(string(text))
	for _, pid := range pids {
		if n, err := strconv.Atoi(pid); err != nil || (n != os.Getpid() && parentOf(n) != os.Getpid()) {
			return fmt.Errorf("process %s, which is not the runner's, is in it: %w", pid, syscall.EBUSY)
		}
	}
	leaf := filepath.Join(r.v2, supervisorGroup)
	if err := makeFolder(leaf); err != nil {
		return err
	}
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

func parentOf(pid int) int {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// Adopt makes a group that was found one of the root's, which removes it. killed says that it was killed before.
func (r *Root) Adopt(g *Group, killed bool) *Group {
	if g != nil {
		g.root = r
		g.killed.Store(killed)
	}
	return g
}

// GiveUpV2 says that processes cannot be born in groups of version 2 here. Limits may still be had by version 1.
func (r *Root) GiveUpV2(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logger.Warn("control groups of version 2 are not used", "group", r.v2, "error", err)
	for _, folder := range append(r.spare, r.v2) {
		_ = os.Remove(folder)
	}
	r.spare = nil
	r.v2, r.err = "", err
}

// retry removes what could not be removed before. The lock is held.
func (r *Root) retry() {
	r.left = slices.DeleteFunc(r.left, remove)
}

// Sweep removes groups that nobody is in, but those that keep says. It is for the groups of a former supervisor.
func (r *Root) Sweep(keep func(name string) bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = nil // They go too.
	tops := []string{r.v2}
	for _, top := range r.v1 {
		tops = append(tops, top)
	}
	for _, top := range tops {
		if top == "" {
			continue
		}
		entries, err := os.ReadDir(top)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != supervisorGroup && !keep(e.Name()) {
				_ = os.Remove(filepath.Join(top, e.Name())) // Somebody may be in it.
			}
		}
	}
}

// Close removes the folders of the runner, when they are empty.
func (r *Root) Close() {
	if r == nil {
		return
	}
	r.Sweep(func(string) bool { return false })
	if r.v2 != "" {
		_ = os.Remove(r.v2)
	}
	for _, top := range r.v1 {
		_ = os.Remove(top)
	}
}
