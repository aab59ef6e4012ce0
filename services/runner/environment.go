package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/process"
)

// defaultPath is where programs are looked up when the launch spec does not say.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the whole environment of the process. Nothing of the runner's own gets in: it may hold
// what is none of the process's business. What the launch spec says comes last and wins.
func environment(work events.Event, spec *executionv1.Prepared, home string) map[string]string {
	env := map[string]string{
		"PATH":                  defaultPath,
		"HOME":                  home,
		"LANG":                  "C.UTF-8",
		"VERBATIM_EXECUTION_ID": work.Subject,
		"VERBATIM_ATTEMPT":      strconv.FormatUint(uint64(work.Attempt), 10),
	}
	if work.Traceparent != "" {
		env["TRACEPARENT"] = work.Traceparent
	}
	for key, value := range spec.GetEnvironment() {
		env[key] = value
	}
	return env
}

// directory is an attempt's working directory and its home. A directory of our own is fresh and empty, and home
// too; in somebody else's nothing should be left behind by programs that write to their home.
type directory struct {
	path, home string
	ours       bool
	owner      *process.Identity // nil: the runner.
}

// directoryOf takes the directory that was asked for, or one below root.
func directoryOf(root, asked, name string) directory {
	if asked != "" {
		return directory{path: asked, home: "/tmp"}
	}
	path := filepath.Join(root, name)
	return directory{path: path, home: path, ours: true}
}

// make makes it, when it is ours.
func (d directory) make() error {
	if !d.ours {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(d.path), 0o700)
	if d.owner != nil && err == nil {
		err = give(d.path, d.owner)
	} else if err == nil {
		err = os.MkdirAll(d.path, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	return nil
}

// remove removes what is ours, also what the process made unreadable or read-only.
func (d directory) remove() error {
	if !d.ours {
		return nil
	}
	err := os.RemoveAll(d.path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// A directory must be open to its owner before what is in it can go. WalkDir reads a directory after the call
	// for it, so it finds it open.
	_ = filepath.WalkDir(d.path, func(path string, entry fs.DirEntry, _ error) error {
		if entry != nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(d.path)
}
