package clickhouse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for addr, ok := range map[string]bool{
		"127.0.0.1:0": true, "127.1.2.3:8123": true, "[::1]:0": true, "localhost:0": true,
		"0.0.0.0:8123": false, ":8123": false, "[::]:0": false, "192.168.1.2:0": false, "example.org:0": false, "127.0.0.1": false, "127.0.0.1:70000": false, "": false,
	} {
		if err := (Config{Addr: addr, DataDir: "x"}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
	err := Config{Addr: "0.0.0.0:1"}.Validate()
	if err == nil || !strings.Contains(err.Error(), "loopback") || !strings.Contains(err.Error(), "data folder") {
		t.Errorf("not everything is reported: %v", err)
	}
	if _, err := Start(t.Context(), Config{Addr: "0.0.0.0:1", DataDir: t.TempDir()}); err == nil {
		t.Error("Start took an address that Validate refuses")
	}
}

func TestMissingLibrary(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "libchdb.so")
	_, err := Start(t.Context(), Config{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Library: missing})
	if err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "scripts/fetch-libchdb") {
		t.Errorf("Config.Library: %v", err)
	}
	t.Setenv("VERBATIM_LIBCHDB", missing)
	if _, err := (Config{}).library(); err == nil || !strings.Contains(err.Error(), "VERBATIM_LIBCHDB") || !strings.Contains(err.Error(), "scripts/fetch-libchdb") {
		t.Errorf("VERBATIM_LIBCHDB: %v", err)
	}
	t.Setenv("VERBATIM_LIBCHDB", "")
	t.Setenv("VERBATIM_CACHE", t.TempDir())
	if _, err := (Config{}).library(); err == nil || !strings.Contains(err.Error(), libraryVersion) {
		t.Errorf("cache: %v", err)
	}
}

func TestLibraryThatIsNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(path, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadLibrary(path); err == nil {
		t.Error("a text file was loaded")
	}
}

// The version stands here and in scripts/libchdb/version.
func TestVersionOfTheScript(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../scripts/libchdb/version")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(text)); got != libraryVersion {
		t.Errorf("scripts/fetch-libchdb fetches %s, this package wants %s", got, libraryVersion)
	}
}
