package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Open opens the folder of version 2 for clone3(2), CLONE_INTO_CGROUP; nil when there is none.
func (g *Group) Open() (*os.File, error) {
	if g == nil || g.v2 == "" {
		return nil, nil
	}
	return os.Open(g.v2)
}

// Join lists the files by which a process enters the groups of version 1.
func (g *Group) Join() []string {
	if g == nil {
		return nil
	}
	var list []string
	for _, folder := range g.folders {
		if folder != g.v2 {
			list = append(list, filepath.Join(folder, "cgroup.procs"))
		}
	}
	return list
}

// Folders are all the group's folders; Find makes a group of them.
func (g *Group) Folders() []string {
	if g == nil {
		return nil
	}
	return g.folders
}

// Find finds a group by its folders; nil when none of them is there any more.
func Find(folders []string) *Group {
	g := &Group{}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "cgroup.procs")); err != nil {
			continue
		}
		g.folders = append(g.folders, folder)
		if _, err := os.Stat(filepath.Join(folder, "cgroup.events")); err == nil {
			g.v2 = folder
		}
		if _, err := os.Stat(filepath.Join(folder, "memory.oom_control")); err == nil {
			g.memory = folder
		}
		if _, err := os.Stat(filepath.Join(folder, "memory.events")); err == nil {
			g.memory, g.isV2 = folder, true
		}
	}
	if len(g.folders) == 0 {
		return nil
	}
	return g
}

// OOMKills says how many processes of the group the kernel killed for memory, and where that was read.
func (g *Group) OOMKills() (kills uint64, evidence string) {
	if g == nil || g.memory == "" {
		return 0, ""
	}
	file := "memory.oom_control"
	if g.isV2 {
		file = "memory.events"
	}
	text, err := os.ReadFile(filepath.Join(g.memory, file))
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == "oom_kill" {
			kills, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return kills, file
}

// Populated reports whether somebody lives in the group.
func (g *Group) Populated() bool {
	for _, folder := range g.Folders() {
		if text, err := os.ReadFile(filepath.Join(folder, "cgroup.procs")); err == nil && alive(strings.Fields(string(text))) {
			return true
		}
	}
	return false
}

// alive reports whether one of the processes is more than a zombie, which version 1 lists too.
func alive(pids []string) bool {
	for _, pid := range pids {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		rest := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(rest) > 0 && rest[0] != "Z" && rest[0] != "X" {
			return true
		}
	}
	return false
}

// killRounds bounds how often a group without cgroup.kill (before Linux 5.14) is gone through: somebody in it may fork meanwhile.
const killRounds = 20

// Kill kills everybody in the group.
func (g *Group) Kill() error {
	if g == nil {
		return nil
	}
	g.killed.Store(true)
	if g.v2 != "" {
		err := os.WriteFile(filepath.Join(g.v2, "cgroup.kill"), []byte("1"), 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("kill control group: %w", err)
		}
	}
	for range killRounds {
		found := false
		for _, folder := range g.folders {
			text, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			if err != nil {
				return fmt.Errorf("read control group: %w", err)
			}
			for pid := range strings.FieldsSeq(string(text)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 1 && alive([]string{pid}) {
					found = true
					_ = syscall.Kill(n, syscall.SIGKILL) // It may have ended.
				}
			}
		}
		if !found {
			return nil
		}
		time.Sleep(time.Millisecond) // For those who fork faster than the list is read.
	}
	return errors.New("control group does not get empty")
}

// Killed reports whether the group was killed.
func (g *Group) Killed() bool { return g != nil && g.killed.Load() }

// Remove removes the group. Where somebody still lives in it, it is tried again from time to time.
func (g *Group) Remove() {
	if g == nil {
		return
	}
	if g.root == nil {
		remove(g.folders)
		return
	}
	g.root.mu.Lock()
	defer g.root.mu.Unlock()
	// A group that was killed once is not used again: a kernel that counts the kills of a group (Linux 6.14, kill_seq) takes the count of
	// the parent's group for the one before the fork, and kills every process that is born there by CLONE_INTO_CGROUP.
	if (!g.killed.Load() && g.root.spares(g.folders)) || remove(g.folders) {
		return
	}
	g.root.left = append(g.root.left, g.folders)
}

func remove(folders []string) bool {
	gone := true
	for _, folder := range folders {
		if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			gone = false
		}
	}
	return gone
}
