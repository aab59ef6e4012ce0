package cgroup

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hierarchy is one mounted tree of groups, and this process's own group in it.
type hierarchy struct {
	own string // The folder.
	// controllers that are bound to it. For version 2, those that this process's group may hand on.
	controllers []string
	v2          bool
}

// hierarchies reads what is mounted (proc_pid_mountinfo(5)) and where in it this process is (cgroups(7)).
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return parse(mounts, groups)
}

func parse(mounts, groups []byte) ([]hierarchy, error) {
	own := map[string]string{} // By controllers, as written; "" is version 2.
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("line %q of /proc/self/cgroup is not known", line)
		}
		own[parts[1]] = parts[2]
	}
	var list []hierarchy
	scan := bufio.NewScanner(bytes.NewReader(mounts))
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		end := slices.Index(fields, "-")
		if end < 6 || len(fields) < end+4 {
			continue
		}
		root, point, kind, options := fields[3], unescape(fields[4]), fields[end+1], strings.Split(fields[end+3], ",")
		if kind != "cgroup" && kind != "cgroup2" {
			continue
		}
		for controllers, path := range own {
			names := strings.Split(controllers, ",")
			mine := kind == "cgroup2" && controllers == ""
			if kind == "cgroup" && controllers != "" {
				mine = !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(options, name) })
			}
			inner, below := within(root, path)
			if !mine || !below {
				continue
			}
			h := hierarchy{own: filepath.Join(point, inner), v2: kind == "cgroup2"}
			if !h.v2 {
				h.controllers = names
			}
			list = append(list, h)
		}
	}
	return list, scan.Err()
}

// within returns the part of a group's path below what is mounted.
func within(root, path string) (string, bool) {
	if root == "/" {
		return path, true
	}
	rest, ok := strings.CutPrefix(path, root)
	if !ok || (rest != "" && rest[0] != '/') {
		// A namespace shows its own top as / and what is mounted relative to it.
		return path, root == "/.." || strings.HasPrefix(root, "/../")
	}
	return rest, true
}

// unescape undoes what mountinfo does with a space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
