// Package kafka is the Kafka that `verbatim up` brings along: a single broker on loopback with the real wire
// protocol (franz-go's kfake), its data in a folder. Any Kafka client can use it. It is for one machine; a
// cluster is for everything else.
//
// # What survives what
//
// Topics, records and group offsets are in files, written before the answer goes out. So they survive
// the process being killed at any moment: what was acknowledged is in the kernel's hands. They are
// not flushed to the disk one by one (kfake's SyncWrites): that costs two flushes per batch, measured
// at 1.6 to 2.8 ms per acknowledged batch against 0.1 to 0.3 ms, and all partitions wait for each
// other; Apache Kafka does not do it either (log.flush.interval.messages). So a power failure may take the last seconds; an orderly Stop flushes.
// What is cut off in the middle of a record is recognised by its checksum at the next start and dropped.
//
// # What is kept
//
// Retention is what the topics say, applied at least once a minute: retention.ms exactly, retention.bytes by
// estimate. The newest record of a partition always stays: kfake forgets where an empty log ended and would
// give out its offsets again after a restart, which is also why its own retention is switched off.
// (For the same reason a log emptied with DeleteRecords begins at 0 after a restart.) Files are freed by
// the segment, 16 MiB unless the topic says otherwise. Group offsets are kept for a week after the group
// was last used, as Kafka does.
//
// # What it does not do
//
// One broker, no replication, no automatic topics, loopback only, no authentication. A folder belongs to one
// process at a time. message.timestamp.type=LogAppendTime is accepted as a setting and not obeyed: records
// keep the producer's time. When the disk is full, a write is refused with an error that clients try again.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Config says where the broker listens and keeps its data.
type Config struct {
	// Addr is a loopback host:port. Port 0 takes a free one, see Server.Addr.
	Addr string
	// DataDir is made when missing.
	DataDir string
	// Logger gets the broker's warnings and errors; nil discards them.
	Logger *slog.Logger
}

// Validate reports everything wrong with the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data folder: is empty"))
	}
	host, _, err := net.SplitHostPort(c.Addr)
	switch ip := net.ParseIP(host); {
	case err != nil:
		errs = append(errs, fmt.Errorf("address: %q is not host:port", c.Addr))
	case host == "localhost":
	case ip == nil || !ip.IsLoopback():
		errs = append(errs, fmt.Errorf("address: %q is not loopback; the embedded broker has no authentication and serves this machine only", c.Addr))
	}
	return errors.Join(errs...)
}

// maxBatchBytes bounds a batch, where the topic's max.message.bytes does not say otherwise.
const maxBatchBytes = "16777216"

// Server is a running broker.
type Server struct {
	cluster *kfake.Cluster
	addr    string
	lock    *os.File
	janitor *janitor
	stop    sync.Once
	stopped chan struct{}
}

// Start opens the data and listens. When it returns, clients can connect. It fails when another process uses
// the folder or the port is taken. ctx bounds nothing but the wait: the time goes into reading the data.
func Start(ctx context.Context, c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("embedded kafka: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embedded kafka: %w", context.Cause(ctx))
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded kafka: make data folder: %w", err)
	}
	lock, err := lockFolder(c.DataDir)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: %w", err)
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("verbatim"),
		kfake.DataDir(filepath.Join(c.DataDir, "broker")),
		kfake.WithLogger(logger(c.Logger)),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, network, c.Addr)
		}),
		kfake.BrokerConfigs(map[string]string{
			"message.max.bytes":      maxBatchBytes,
			"log.segment.bytes":      "16777216",
			"log.cleaner.backoff.ms": "31536000000", // a year: see janitor
		}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded kafka: %w", err), lock.Close())
	}
	s := &Server{cluster: cluster, addr: cluster.ListenAddrs()[0], lock: lock, stopped: make(chan struct{})}
	if s.janitor, err = startJanitor(cluster, s.addr, c.Logger); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded kafka: %w", err), s.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// Addr is the host:port in use.
func (s *Server) Addr() string { return s.addr }

// ApplyRetention applies the topics' retention now.
func (s *Server) ApplyRetention(ctx context.Context) error {
	_, err := s.janitor.sweep(ctx)
	return err
}

// Stop closes the listener and the connections, writes and flushes everything, and gives the folder free. When
// ctx ends first that goes on in the background; what was acknowledged is safe either way.
func (s *Server) Stop(ctx context.Context) error {
	s.stop.Do(func() {
		go func() {
			defer close(s.stopped)
			if s.janitor != nil {
				s.janitor.stop()
			}
			s.cluster.Close()
			_ = s.lock.Close()
		}()
	})
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop embedded kafka: %w", context.Cause(ctx))
	}
}

// slogLogger takes kfake's printf-style lines. Its levels below warning are one line per request.
type slogLogger struct{ log *slog.Logger }

func logger(l *slog.Logger) kfake.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return slogLogger{l}
}

// Logf implements kfake.Logger.
func (l slogLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	default:
	}
	if !l.log.Enabled(context.Background(), to) {
		return
	}
	l.log.Log(context.Background(), to, "embedded kafka", "detail", fmt.Sprintf(format, args...))
}
