package supervisor

import (
	"os/exec"
	"sync"
)

// Family tells the children that this process has started from orphans that the kernel gave to it, as the first process of a container
// or as their subreaper: the former are waited for by who started them, the latter by nobody else.
type Family struct {
	// forking is held, shared, from before fork(2) until the child is entered, so that who reaps orphans can tell them
	// from children of ours.
	forking sync.RWMutex

	mu   sync.Mutex
	ours map[int]bool
}

// Start starts a command whose end the caller waits for.
func (f *Family) Start(c *exec.Cmd) error {
	f.forking.RLock()
	defer f.forking.RUnlock()
	if err := c.Start(); err != nil {
		return err
	}
	f.enter(c.Process.Pid)
	return nil
}

// Reap reaps orphans until stop is called. It is for a process that has no other children than those it started by the family.
func (f *Family) Reap() (stop func()) { return f.reap() }

func (f *Family) enter(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ours == nil {
		f.ours = make(map[int]bool)
	}
	f.ours[pid] = true
}

func (f *Family) leave(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ours, pid)
}

func (f *Family) owns(pid int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ours[pid]
}
