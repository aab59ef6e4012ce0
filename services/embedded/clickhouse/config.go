package clickhouse

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
)

// libraryVersion is the version of the npm packages @chdb/lib-* that this package is written against and tested with.
// scripts/libchdb/version holds the same text for scripts/fetch-libchdb; a test keeps the two equal.
const libraryVersion = "26.7.3-stable.1"

// Config says where the embedded ClickHouse listens, where it keeps its data and which library it runs.
type Config struct {
	// Addr is the host:port of the HTTP interface. The host is a loopback address or "localhost"; port 0 takes a free
	// port, which Server.Addr then reports.
	Addr string
	// DataDir is the folder of the database. It is created when it is missing. One process holds it at a time.
	DataDir string
	// Library is the path of libchdb.so. Empty: the environment variable VERBATIM_LIBCHDB, else the cache that
	// scripts/fetch-libchdb fills.
	Library string
	// Logger receives one line per change of state. Nil: slog.Default().
	Logger *slog.Logger
}

// Validate reports everything that is wrong with the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if err := validateLoopback(c.Addr); err != nil {
		errs = append(errs, err)
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("the data folder of the embedded clickhouse is not set"))
	}
	return errors.Join(errs...)
}

func validateLoopback(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("clickhouse address %q: %w", addr, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("clickhouse address %q: %w", addr, err)
	}
	if !isLoopbackHost(host) {
		return fmt.Errorf("clickhouse address %q: the embedded clickhouse has no passwords, so it listens on loopback only (127.0.0.1, ::1 or localhost)", addr)
	}
	return nil
}

func isLoopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// library resolves the path of libchdb in the order that Config.Library documents. The error of a missing file names
// the command that fetches it.
func (c Config) library() (string, error) {
	path, from := c.Library, "Config.Library"
	if path == "" {
		path, from = os.Getenv("VERBATIM_LIBCHDB"), "VERBATIM_LIBCHDB"
	}
	if path == "" {
		cached, err := cachedLibrary()
		if err != nil {
			return "", err
		}
		path, from = cached, "the cache"
	}
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		return "", fmt.Errorf("libchdb, the engine of the embedded clickhouse, is not at %s (from %s): run `make deps` or `scripts/fetch-libchdb` to fetch it", path, from)
	}
	return path, nil
}

// cachedLibrary is the place where scripts/fetch-libchdb puts the library.
func cachedLibrary() (string, error) {
	platform, ok := map[string]string{
		"linux/amd64":  "linux-x64-gnu",
		"linux/arm64":  "linux-arm64-gnu",
		"darwin/amd64": "darwin-x64",
		"darwin/arm64": "darwin-arm64",
	}[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("there is no libchdb for %s/%s; use a clickhouse server instead of the embedded one", runtime.GOOS, runtime.GOARCH)
	}
	cache := os.Getenv("VERBATIM_CACHE")
	if cache == "" {
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find the cache of libchdb: %w", err)
			}
			base = filepath.Join(home, ".cache")
		}
		cache = filepath.Join(base, "verbatim")
	}
	return filepath.Join(cache, "libchdb", libraryVersion+"-"+platform, "libchdb.so"), nil
}

func (c Config) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}
