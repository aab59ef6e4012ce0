package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Defaults of Config.
const (
	DefaultMaxBody  = 16 << 20
	DefaultMaxTails = 256
	// DefaultMaxDownloads times 8 MiB, a part of the archive, is what downloads may hold in memory.
	DefaultMaxDownloads = 64
	minTokenBytes       = 16
)

// Config of a gateway.
type Config struct {
	// Addr is host:port to listen on; port 0 takes a free one. A host that is not loopback needs a Token.
	Addr string
	// Token, when set, must come with every request but /livez: "Authorization: Bearer <token>".
	Token string
	// MaxBody bounds a request's body, in bytes; 0 is DefaultMaxBody.
	MaxBody int64
	// MaxTails bounds the live tails at one time; 0 is DefaultMaxTails.
	MaxTails int
	// MaxDownloads bounds the outputs and lists of events that are read at one time; 0 is DefaultMaxDownloads.
	MaxDownloads int
	// ClickHouseURL is ClickHouse's HTTP interface, for queries: http://user:password@host:port/database.
	ClickHouseURL string
	// Heartbeat is how often a tail without facts says that it lives; 0 is 10 s.
	Heartbeat time.Duration
	Logger    *slog.Logger
	// Registry gets the gateway's metrics and is what /metrics shows.
	Registry *prometheus.Registry
	// Processes are others whose metrics /metrics shows too.
	Processes []prometheus.Gatherer
}

// Validate reports everything that is wrong, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := ValidateAddress(c.Addr, c.Token); err != nil {
		errs = append(errs, err)
	}
	if c.MaxBody < 0 || c.MaxTails < 0 || c.MaxDownloads < 0 || c.Heartbeat < 0 {
		bad("limits: a limit is negative")
	}
	// The parser's error would repeat the URL, and with it the password.
	if u, err := url.Parse(c.ClickHouseURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		bad("clickhouse: the gateway needs the URL of ClickHouse's HTTP interface, like http://127.0.0.1:8123/default")
	}
	if c.Logger == nil {
		bad("logger: is missing")
	}
	if c.Registry == nil {
		bad("registry: is missing")
	}
	return errors.Join(errs...)
}

// ValidateAddress reports what is wrong with an address to listen on and the token that goes with it.
func ValidateAddress(addr, token string) error {
	var errs []error
	loopback, err := isLoopback(addr)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("address: %w", err))
	case !loopback && token == "":
		errs = append(errs, fmt.Errorf("address: %s can be reached from other machines, and whoever reaches it can start processes: set a token or listen on 127.0.0.1", addr))
	}
	if token != "" && len(token) < minTokenBytes {
		errs = append(errs, fmt.Errorf("token: has %d characters, at least %d are needed", len(token), minTokenBytes))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.MaxBody == 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.MaxTails == 0 {
		c.MaxTails = DefaultMaxTails
	}
	if c.MaxDownloads == 0 {
		c.MaxDownloads = DefaultMaxDownloads
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 10 * time.Second
	}
	return c
}

// isLoopback tells whether only this machine reaches the address.
func isLoopback(addr string) (bool, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return false, fmt.Errorf("%q is not host:port", addr)
	}
	if host == "localhost" {
		return true, nil
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback(), nil
}
