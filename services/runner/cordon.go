package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"verbatim.dev/services/runner/journal"
)

// ErrCordoned says that somebody has told the runner to take no more attempts. The message belongs to another one.
var ErrCordoned = errors.New("runner is cordoned")

// cordonFile is there while the runner is cordoned, also over restarts. It says who asked, when and why, for people.
const cordonFile = "cordoned"

// loadCordon reads what was said before a restart.
func (r *Runner) loadCordon() error {
	_, err := os.Stat(filepath.Join(r.config.DataDir, cordonFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find out whether the runner is cordoned: %w", err)
	}
	r.cordoned.Store(err == nil)
	return nil
}

// Cordon lets the runner take no more attempts, or take them again. What it has goes on. Saying the same again changes nothing.
func (r *Runner) Cordon(on bool, requestedBy, reason string) error {
	changed, err := r.setCordoned(on, requestedBy, reason)
	if changed {
		r.AnnounceSoon() // It takes mu, with which pauseMu is taken (admit).
	}
	return err
}

func (r *Runner) setCordoned(on bool, requestedBy, reason string) (changed bool, err error) {
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if r.cordoned.Load() == on {
		return false, nil
	}
	path := filepath.Join(r.config.DataDir, cordonFile)
	if on {
		text := fmt.Sprintf("cordoned at %s by %s: %s\n", time.Now().UTC().Format(time.RFC3339), oneLine(requestedBy), oneLine(reason))
		err = journal.WriteFile(path, []byte(text))
	} else if err = os.Remove(path); err == nil {
		err = journal.SyncFolder(r.config.DataDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("write down that the runner is cordoned (%v): %w", on, err)
	}
	r.cordoned.Store(on)
	r.pauseChange()
	r.config.Logger.Info("runner is cordoned or not any more", "cordoned", on, "requested_by", oneLine(requestedBy), "reason", oneLine(reason))
	return true, nil
}
