package runner_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/services/runner"
)

func TestTheKeyIsMadeOnceAndALostOneIsSaid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() error {
		r, err := runner.New(runner.Config{ID: "r1", DataDir: dir, Logger: slog.New(slog.DiscardHandler)}, newLog(),
			func(context.Context, *message.Message) error { return nil })
		if err != nil {
			return err
		}
		return r.Stop(t.Context())
	}
	path := filepath.Join(dir, "key")
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	key := read()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(key, "AGE-SECRET-KEY-1") {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if err := open(); err != nil || read() != key {
		t.Fatalf("the second start: %v, the same key: %v", err, read() == key)
	}
	// What only got as far as the key, when it was made, is finished.
	if err := os.Remove(path + ".pub"); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil || read() != key {
		t.Fatalf("without the public part: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func() error
		says  string
	}{
		"open to others": {func() error { return os.Chmod(path, 0o644) }, "chmod 600"},
		"lost":           {func() error { return os.Remove(path) }, "is gone"},
		"another":        {func() error { return replaceKey(t, path) }, "not the one that was announced"},
		"damaged":        {func() error { return os.WriteFile(path, []byte(key[:len(key)-5]), 0o600) }, "holds no key"},
		"empty":          {func() error { return os.WriteFile(path, nil, 0o600) }, "holds no key"},
		"a folder":       {func() error { return os.Mkdir(path, 0o700) }, "no file"},
		"unreadable":     {func() error { return os.Symlink("key", path) }, "open the runner's key"},
	} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "a folder" || name == "unreadable" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		err := open()
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		} else if secret := strings.TrimSpace(key[strings.Index(key, "AGE-SECRET-KEY-1")+16:]); strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

// replaceKey puts the key of another runner in the place of this one's.
func replaceKey(t *testing.T, path string) error {
	t.Helper()
	other := newRunner(t, nil)
	text, err := os.ReadFile(filepath.Join(other.data, "key"))
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
