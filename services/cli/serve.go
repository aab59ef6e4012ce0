package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	clickhousestore "verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/preparer"
	"verbatim.dev/services/recorder/watchdog"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/cgroup"
)

// defaultKeep is how many executions' states a projector keeps in memory: at most about 300 KB each, most far
// less.
const defaultKeep = 2000

// clickhouseFlags say how a service reaches ClickHouse.
type clickhouseFlags struct {
	ClickHouse string `name:"clickhouse" required:"" env:"VERBATIM_CLICKHOUSE" placeholder:"DSN" help:"ClickHouse as a DSN of clickhouse-go, e.g. http://127.0.0.1:8123/default. With a password, give it by the environment."`
}

// retentionFlags say how long the log and the tables keep what they have.
type retentionFlags struct {
	KeepLog    *time.Duration `env:"VERBATIM_KEEP_LOG" placeholder:"DURATION" help:"How long Kafka keeps requests and events, e.g. 72h; said when the topics are made, and not changed later. Default: a week."`
	KeepRows   *uint          `env:"VERBATIM_KEEP_ROWS" placeholder:"DAYS" help:"Days that rows are kept, from the day of the request; 0 is for ever. Not given: as it was, at first for ever."`
	KeepEvents *uint          `env:"VERBATIM_KEEP_EVENTS" placeholder:"DAYS" help:"Days that the archive keeps events, output among them; 0 is for ever. Not given: as it was, at first for ever."`
}

func (f retentionFlags) retention() clickhousestore.Retention {
	return clickhousestore.Retention{RowsDays: f.KeepRows, EventsDays: f.KeepEvents}
}

// Validate is called by kong.
func (f retentionFlags) Validate() error {
	if f.KeepLog != nil && *f.KeepLog < time.Second {
		return fmt.Errorf("--keep-log is %s, it must be at least 1s: what a service has not read by then is gone", *f.KeepLog)
	}
	return f.retention().Validate()
}

// artifactFlags say where artifacts are kept.
type artifactFlags struct {
	Artifacts string `env:"VERBATIM_ARTIFACTS" placeholder:"URL" help:"Where stdout.log and stderr.log of every attempt are kept: file:///DIR, s3://BUCKET, azblob://CONTAINER or gs://BUCKET, with ?prefix=FOLDER/, for S3 also region=, endpoint= and use_path_style=true. Credentials come from the environment. Default: no such files; of \"up\" the folder artifacts in its data; none for none."`
}

// artifactMakerFlags say also how they are made.
type artifactMakerFlags struct {
	artifactFlags
	KeepArtifacts     uint   `env:"VERBATIM_KEEP_ARTIFACTS" placeholder:"DAYS" help:"Days that they are kept, from the day of the request; 0, the default, is for ever. What would go: \"verbatim retention\"."`
	ArtifactsCompress string `env:"VERBATIM_ARTIFACTS_COMPRESS" default:"none" enum:"none,zstd" help:"Compress them: none or zstd."`
}

func (f artifactMakerFlags) config(data string) (wiring.Artifacts, error) {
	c, err := f.artifactFlags.config(data)
	if f.ArtifactsCompress == artifact.Zstd {
		c.Compression = artifact.Zstd
	}
	if f.KeepArtifacts > clickhousestore.MaxDays {
		err = errors.Join(err, fmt.Errorf("--keep-artifacts is %d days, the limit is %d; 0 is for ever", f.KeepArtifacts, clickhousestore.MaxDays))
	}
	c.KeepDays = f.KeepArtifacts
	return c, err
}

// config is where artifacts are kept, in a folder of their own when no store was named and there is a data folder.
func (f artifactFlags) config(data string) (wiring.Artifacts, error) {
	c := wiring.Artifacts{URL: f.Artifacts}
	if c.URL == "" && data != "" {
		c.URL = (&url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(data, "artifacts"))}).String()
	}
	if c.URL == "" || c.URL == "none" {
		return wiring.Artifacts{}, nil
	}
	return c, artifact.Validate(c.URL)
}

// healthFlags say where a service answers for its health.
type healthFlags struct {
	Health string `default:"127.0.0.1:0" env:"VERBATIM_HEALTH" placeholder:"ADDR" help:"Loopback address for /livez, /readyz and /metrics; port 0 is any free one."`
}

// preparerFlags say how long requests may wait.
type preparerFlags struct {
	PrepareWithin time.Duration `default:"1h" env:"VERBATIM_PREPARE_WITHIN" placeholder:"D" help:"How old a request may be when it is prepared; later it has failed. The same for preparers and recorders."`
	StartWithin   time.Duration `default:"24h" env:"VERBATIM_START_WITHIN" placeholder:"D" help:"How long a runner may take to start what was prepared; later it has failed."`
}

func (f preparerFlags) config() preparer.Config {
	return preparer.Config{PrepareWithin: f.PrepareWithin, StartWithin: f.StartWithin}
}

// Validate is called by kong.
func (f preparerFlags) Validate() error {
	if f.PrepareWithin <= 0 || f.StartWithin <= 0 {
		return fmt.Errorf("--prepare-within is %s and --start-within %s, they must be positive", f.PrepareWithin, f.StartWithin)
	}
	return nil
}

// watchdogFlags say when the recorder closes what nobody else does.
type watchdogFlags struct {
	MissedHeartbeats int           `default:"15" env:"VERBATIM_MISSED_HEARTBEATS" placeholder:"N" help:"After how many heartbeats that did not come, one every 2 s, a runner counts as lost."`
	SealWithin       time.Duration `default:"1h" env:"VERBATIM_SEAL_WITHIN" placeholder:"D" help:"How long the output of a process that has ended may take to be sealed."`
	ClockMargin      time.Duration `default:"1m" env:"VERBATIM_CLOCK_MARGIN" placeholder:"D" help:"By how much the clocks of brokers, runners and services may differ: deadlines that runners and preparers keep are given that much more."`
}

func (f watchdogFlags) config(prepareWithin time.Duration) watchdog.Config {
	c := watchdog.Config{MissedHeartbeats: f.MissedHeartbeats, PrepareWithin: prepareWithin, SealWithin: f.SealWithin, Margin: f.ClockMargin}
	// What happens within seconds is looked at more than once a second.
	c.Sweep = min(time.Second, max(prepareWithin, 200*time.Millisecond)/2)
	return c
}

// Validate is called by kong.
func (f watchdogFlags) Validate() error {
	if f.MissedHeartbeats < 2 || f.SealWithin <= 0 || f.ClockMargin <= 0 {
		return fmt.Errorf("--missed-heartbeats is %d (at least 2), --seal-within %s and --clock-margin %s (positive)", f.MissedHeartbeats, f.SealWithin, f.ClockMargin)
	}
	return nil
}

// runnerFlags describe a runner.
type runnerFlags struct {
	ID         string        `name:"runner-id" env:"VERBATIM_RUNNER_ID" placeholder:"ID" help:"The runner's id, the same over restarts. Default: the host's name."`
	Slots      int           `default:"64" env:"VERBATIM_SLOTS" help:"How many processes run at the same time."`
	Grace      time.Duration `default:"10s" env:"VERBATIM_GRACE" help:"Time between TERM and KILL, where a request does not say."`
	SpoolLimit size          `default:"256MiB" env:"VERBATIM_SPOOL_LIMIT" placeholder:"SIZE" help:"How much output of one stream may lie on the disk and wait to be published; then the process has to wait."`
	LateOutput time.Duration `default:"1h" env:"VERBATIM_LATE_OUTPUT" help:"How long output is still kept that a process which was left behind writes after the end; 0 is not at all."`
	DataDir    string        `kong:"-"`
}

func (f runnerFlags) config(b wiring.Base) (runner.Config, error) {
	host, err := os.Hostname()
	if err != nil {
		return runner.Config{}, fmt.Errorf("find the host's name: %w", err)
	}
	if f.ID == "" {
		f.ID = host
	}
	c := runner.Config{
		ID: f.ID, Host: host, Version: version(), DataDir: filepath.Join(f.DataDir, "runner-"+f.ID), Slots: f.Slots, Grace: f.Grace, SpoolBytes: uint64(f.SpoolLimit),
		LateTime: f.LateOutput, Logger: b.Logger, Registry: b.Registry,
	}
	if f.LateOutput == 0 {
		c.LateTime = -1
	}
	return c, c.Validate()
}

// serve runs one service until a signal.
func (s *session) serve(ctx context.Context, k kafkaFlags, h healthFlags, build func(wiring.Base) (lifecycle.Service, error)) error {
	logger, err := s.logger()
	if err != nil {
		return err
	}
	registry, checks := telemetry.NewRegistry(), &telemetry.Checks{}
	broker, err := k.config(logger)
	if err != nil {
		return usageError{err}
	}
	base := wiring.Base{Kafka: broker, Logger: logger, Registry: registry, Checks: checks}
	service, err := build(base)
	if err != nil {
		return usageError{err}
	}
	group := lifecycle.NewGroup(logger)
	starting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := group.Start(starting, "service", service, stopTime); err != nil {
		return err
	}
	if h.Health != "" {
		health := telemetry.NewServer(h.Health, checks, registry)
		if err := group.Start(starting, "health", health, stopTime); err != nil {
			return err
		}
		logger.InfoContext(ctx, "answering for health", "address", health.Addr())
		if told, ok := service.(interface{ ServesHealth(address string) error }); ok {
			if err := told.ServesHealth(health.Addr()); err != nil {
				return errors.Join(err, stopAll(group))
			}
		}
	}
	failed := group.Wait(ctx)
	return errors.Join(failed, stopAll(group))
}

type preparerCommand struct {
	kafkaFlags
	preparerFlags
	healthFlags
}

// Run is called by kong.
func (c *preparerCommand) Run(ctx context.Context, s *session) error {
	return s.serve(ctx, c.kafkaFlags, c.healthFlags, func(b wiring.Base) (lifecycle.Service, error) {
		return wiring.Preparer(b, c.preparerFlags.config()), nil
	})
}

type runnerCommand struct {
	kafkaFlags
	healthFlags
	runnerFlags
	Data string `env:"VERBATIM_DATA" placeholder:"DIR" help:"Folder for all data; a runner's is in runner-ID below it. Default: ${data}."`
}

// configure makes a runner's configuration.
func (c *runnerCommand) configure(b wiring.Base) (runner.Config, error) {
	if c.Data == "" {
		c.Data = defaultDataDir()
	}
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return runner.Config{}, fmt.Errorf("find the data folder: %w", err)
	}
	c.runnerFlags.DataDir = data
	return c.runnerFlags.config(b)
}

// Run is called by kong. It is the supervisor: it has the processes, and starts itself again as the worker, which does
// everything else.
func (c *runnerCommand) Run(ctx context.Context, s *session) error {
	logger, err := s.logger()
	if err != nil {
		return err
	}
	_, kafkaErr := c.kafkaFlags.config(logger)
	config, configErr := c.configure(wiring.Base{Logger: logger})
	if err := errors.Join(kafkaErr, configErr); err != nil {
		return usageError{err}
	}
	return supervise(ctx, s, logger, cgroup.Open(config.ID, config.DataDir, logger))
}

type recorderCommand struct {
	kafkaFlags
	clickhouseFlags
	healthFlags
	watchdogFlags
	PrepareWithin time.Duration `default:"1h" env:"VERBATIM_PREPARE_WITHIN" placeholder:"D" help:"How old a request may be when it is prepared; later it has failed. The same for preparers and recorders."`
	artifactMakerFlags
}

// recorderGC is the recorder's GOGC. What is live of it are buffers without pointers, which cost the collector nothing to look through; by
// default as much again would lie around as garbage.
const recorderGC = 50

// Run is called by kong.
func (c *recorderCommand) Run(ctx context.Context, s *session) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(recorderGC)
	}
	return s.serve(ctx, c.kafkaFlags, c.healthFlags, func(b wiring.Base) (lifecycle.Service, error) {
		if c.PrepareWithin <= 0 {
			return nil, fmt.Errorf("--prepare-within is %s, it must be positive", c.PrepareWithin)
		}
		artifacts, err := c.artifactMakerFlags.config("")
		return wiring.Recorder(b, c.ClickHouse, c.watchdogFlags.config(c.PrepareWithin), artifacts), err
	})
}

type projectorCommand struct {
	kafkaFlags
	clickhouseFlags
	healthFlags
	Keep int `default:"2000" env:"VERBATIM_KEEP" help:"How many executions' states to keep in memory."`
}

// Run is called by kong.
func (c *projectorCommand) Run(ctx context.Context, s *session) error {
	return s.serve(ctx, c.kafkaFlags, c.healthFlags, func(b wiring.Base) (lifecycle.Service, error) {
		if c.Keep < 1 {
			return nil, fmt.Errorf("--keep is %d, it must be at least 1", c.Keep)
		}
		return wiring.Projector(b, c.ClickHouse, c.Keep), nil
	})
}

type gatewayCommand struct {
	kafkaFlags
	clickhouseFlags
	artifactFlags
	ClickHouseHTTP string `name:"clickhouse-http" env:"VERBATIM_CLICKHOUSE_HTTP" placeholder:"URL" help:"ClickHouse's HTTP interface, for queries, when --clickhouse is not http."`
	HTTP           string `name:"http" default:"127.0.0.1:7410" env:"VERBATIM_HTTP" placeholder:"ADDR" help:"Address of the HTTP API; port 0 is any free one."`
	Token          string `env:"VERBATIM_TOKEN" placeholder:"TOKEN" help:"Token that requests must carry; needed for an address that is not on loopback. Better given by the environment."`
}

// Run is called by kong.
func (c *gatewayCommand) Run(ctx context.Context, s *session) error {
	return s.serve(ctx, c.kafkaFlags, healthFlags{}, func(b wiring.Base) (lifecycle.Service, error) {
		if err := gateway.ValidateAddress(c.HTTP, c.Token); err != nil {
			return nil, err
		}
		artifacts, err := c.artifactFlags.config("")
		return wiring.Gateway(b, gateway.Config{Addr: c.HTTP, Token: c.Token, ClickHouseURL: c.ClickHouseHTTP}, c.ClickHouse, artifacts), err
	})
}

type setupCommand struct {
	kafkaFlags
	clickhouseFlags
	retentionFlags
}

// Run is called by kong.
func (c *setupCommand) Run(ctx context.Context, s *session) error {
	logger, err := s.logger()
	if err != nil {
		return err
	}
	broker, err := c.kafkaFlags.config(logger)
	if err != nil {
		return usageError{err}
	}
	b := wiring.Base{Kafka: broker, Logger: logger}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := wiring.Setup(b, c.ClickHouse, c.retention(), c.KeepLog).Start(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.stdout, "topics and tables are there")
	return err
}
