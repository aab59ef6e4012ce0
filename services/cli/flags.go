package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"verbatim.dev/services/internal/telemetry"
)

const (
	defaultHTTP       = "127.0.0.1:7410"
	defaultServerHelp = "the one that \"verbatim up\" runs on this machine"
)

type logFlags struct {
	Level  string `enum:"debug,info,warn,error" default:"info" env:"VERBATIM_LOG_LEVEL" help:"Least level that is logged: debug, info, warn or error."`
	Format string `enum:"auto,text,json" default:"auto" env:"VERBATIM_LOG_FORMAT" help:"Format of the log: auto, text or json."`
}

func (s *session) logger() (*slog.Logger, error) {
	l, err := telemetry.NewLogger(telemetry.LogConfig{Level: s.log.Level, Format: s.log.Format}, s.stderr)
	if err != nil {
		return nil, usageError{err}
	}
	return l, nil
}

// serverFlags say which gateway a user command talks to.
type serverFlags struct {
	Server string `env:"VERBATIM_SERVER" placeholder:"URL" help:"Address of the gateway. Default: ${server}."`
	Token  string `env:"VERBATIM_TOKEN" placeholder:"TOKEN" help:"Token of the gateway, where it asks for one. Better given by the environment: arguments can be seen by others."`
}

// readFlags are those of a command that reads what the services store.
type readFlags struct {
	serverFlags
	ReadWait time.Duration `env:"VERBATIM_READ_WAIT" placeholder:"DURATION" help:"How long an answer may wait until what was written before is stored, up to 1m; after that it comes with a warning. Default: for \"run --json\" 30s, else what the gateway finds right (1s to 30s)."`
}

// url is the address with its scheme.
func (f serverFlags) url() string {
	server := f.Server
	if server == "" {
		server = defaultHTTP
		if e, err := readEndpoints(defaultDataDir()); err == nil {
			server = e.HTTP
		}
	}
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	return strings.TrimSuffix(server, "/")
}

// isLocal says whether the gateway is on this machine, so that paths mean the same there.
func (f serverFlags) isLocal() bool {
	host := strings.TrimPrefix(strings.TrimPrefix(f.url(), "http://"), "https://")
	host, _, _ = strings.Cut(host, "/")
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// defaultDataDir follows the XDG base directory specification: state that is kept and is not configuration.
func defaultDataDir() string {
	if dir := os.Getenv("VERBATIM_DATA"); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "verbatim")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "verbatim")
	}
	return "verbatim-data"
}

// endpoints are the addresses (host:port) that a running "verbatim up" uses, as written to its data folder.
type endpoints struct {
	HTTP       string `json:"http"`
	Kafka      string `json:"kafka"`
	ClickHouse string `json:"clickhouse"`
}

const endpointsFile = "endpoints.json"

func readEndpoints(dir string) (endpoints, error) {
	var e endpoints
	text, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, fmt.Errorf("read %s: %w", endpointsFile, err)
	}
	return e, nil
}

// write replaces the file as a whole: who polls it never reads half of it.
func (e endpoints) write(dir string) error {
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, endpointsFile)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

func removeEndpoints(dir string) error {
	if err := os.Remove(filepath.Join(dir, endpointsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old endpoints: %w", err)
	}
	return nil
}
