package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/outbox"
	"verbatim.dev/services/runner/supervisor"
)

// Config says how a runner works. Zero values stand for the defaults.
type Config struct {
	// ID names the runner for ever, also over restarts: letters, digits, '.', '_' and '-'.
	ID string
	// Host is the machine's name, for people. Default: what the system says.
	Host string
	// Version of the program, for people.
	Version string
	// DataDir holds what is known of attempts that are not over, and the working directories of those that name none. Absolute;
	// it is made when it does not exist. Only one runner at a time works on it.
	DataDir string
	// Slots is how many processes run side by side. Default 64.
	Slots int
	// Grace is the time between TERM and KILL for an execution that does not set its own. Default 10 s.
	Grace time.Duration
	// DrainTime is how long output is read after the process ended while another process holds the pipe. Default 5 s.
	DrainTime time.Duration
	// LateTime is how long, after that, output is still kept that such a process writes; of as many attempts at a time as there are
	// slots. Default 1 h, less than 0 for none.
	LateTime time.Duration
	// LateBytes is how much such a process may write before it is not listened to any more, in bytes. Default 1 GiB.
	LateBytes uint64
	// FlushInterval is how old captured output gets before it is published: half of the 100 ms in which a line is to
	// be in the log. Default 50 ms.
	FlushInterval time.Duration
	// ShutdownGrace is how long Stop lets processes go on before it begins to end them. Default 0: at once.
	ShutdownGrace time.Duration
	// SpoolBytes is how much of a stream may lie on the disk and wait to be published, in bytes; then the process has to wait.
	// Default 256 MiB.
	SpoolBytes uint64
	// Supervisor holds the processes. nil: one in this process, whose processes end with it.
	Supervisor *supervisor.Client
	// Committed asks the broker whose a claim is of which the answer was lost, in a crash or on its way. nil: nobody's.
	Committed func(ctx context.Context, l journal.Launch) (Whose, error)
	// Upload gives the parts of an uploaded standard input, in order; it may give one again. It waits while the broker is away, until
	// the context ends, and returns ErrUploadGone when the log does not have them any more, or what take returned. It keeps no
	// part. nil: an execution with an upload fails.
	Upload func(ctx context.Context, u *executionv1.StdinUpload, take func(offset uint64, data []byte) error) error
	// OthersFree asks whether another runner has a free slot; the context gives it 2 s. Work that waits here for a slot is
	// then left to the others, until there is one (Paused). nil: nobody else has one.
	OthersFree func(ctx context.Context) (bool, error)
	// ChunkBytes is the most that one OutputChunk carries. Default 256 KiB.
	ChunkBytes int
	// Logger gets one line per change of state. Default: slog.Default.
	Logger *slog.Logger
	// Registry gets the metrics. Default: they are kept and not shown.
	Registry prometheus.Registerer
}

// outboxBytes bounds what one attempt keeps in memory while the log does not acknowledge. Four batches of
// the outbox: two under way and two gathering.
const outboxBytes = 4 * outbox.BatchBytes

var idForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// Validate reports everything that is wrong with the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !idForm.MatchString(c.ID) {
		bad("runner id %q: want 1 to 128 letters, digits, '.', '_' or '-'", c.ID)
	}
	if !filepath.IsAbs(c.DataDir) {
		bad("data directory %q: want an absolute path", c.DataDir)
	}
	if c.Slots < 0 || c.Slots > 10_000 {
		bad("slots %d: want 1 to 10000", c.Slots)
	}
	for name, d := range map[string]time.Duration{
		"grace": c.Grace, "drain time": c.DrainTime, "flush interval": c.FlushInterval, "shutdown grace": c.ShutdownGrace,
	} {
		if d < 0 {
			bad("%s %s: want a positive duration", name, d)
		}
	}
	if c.ChunkBytes < 0 || c.ChunkBytes > events.MaxChunkBytes {
		bad("chunk size %d bytes: want 1 to %d", c.ChunkBytes, events.MaxChunkBytes)
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.Host == "" {
		c.Host, _ = os.Hostname()
	}
	c.Host = oneLine(c.Host)
	if c.Slots == 0 {
		c.Slots = 64
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.DrainTime == 0 {
		c.DrainTime = 5 * time.Second
	}
	if c.LateTime == 0 {
		c.LateTime = time.Hour
	}
	if c.LateBytes == 0 {
		c.LateBytes = 1 << 30
	}
	if c.FlushInterval == 0 {
		c.FlushInterval = 50 * time.Millisecond
	}
	if c.SpoolBytes == 0 {
		c.SpoolBytes = 256 << 20
	}
	if c.ChunkBytes == 0 {
		c.ChunkBytes = 256 << 10
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	return c
}
