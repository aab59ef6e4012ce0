package supervisor

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapPause is how long an orphan may stay a zombie.
const reapPause = 50 * time.Millisecond

// reap makes this process the parent of every orphan below it, and reaps them: a process of an execution may leave
// children behind, and as PID 1 of a container there is nobody else to do it. Children of our own (the worker, the
// processes) are never touched: their numbers have to stay theirs.
func (r *run) reap() (stop func()) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		r.Logger.Warn("orphans go to another parent", "error", err)
	}
	return r.host.family.reap()
}

// reap reaps orphans whenever a child has ended, until stop.
func (f *Family) reap() (stop func()) {
	signals, done, over := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		defer close(over)
		f.reapOrphans() // Those whose signal came before this was listening.
		for {
			select {
			case <-signals:
				f.reapOrphans()
				select { // It reads much of /proc and keeps others from forking: not for every end of a short process.
				case <-time.After(reapPause):
				case <-done:
				}
			case <-done:
				f.reapOrphans()
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
		<-over
	}
}

// reapOrphans reaps every zombie among our children that is not ours to keep. Who forks holds the lock until the
// child is entered.
func (f *Family) reapOrphans() {
	lists, err := filepath.Glob("/proc/self/task/*/children") // proc_tid_children(5)
	if err != nil {
		return
	}
	f.forking.Lock()
	defer f.forking.Unlock()
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // The thread has ended; its children are another's now, and come with the next signal.
		}
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && !f.owns(pid) {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
	}
}
