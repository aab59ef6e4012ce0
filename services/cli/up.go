package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events/kafka"
	"verbatim.dev/services/embedded/clickhouse"
	embeddedkafka "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/internal/lifecycle"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/runner/supervisor"
)

// How long a stack may take to start and to stop.
const (
	startTime = 2 * time.Minute
	stopTime  = time.Minute
)

type upCommand struct {
	Data       string   `placeholder:"DIR" help:"Folder for all data. Default: ${data}."`
	HTTP       string   `name:"http" default:"127.0.0.1:7410" env:"VERBATIM_HTTP" placeholder:"ADDR" help:"Address of the HTTP API; port 0 is any free one. Default: 127.0.0.1:7410."`
	Token      string   `env:"VERBATIM_TOKEN" placeholder:"TOKEN" help:"Token that requests must carry; needed for an address that is not on loopback. Better given by the environment."`
	Kafka      string   `default:"127.0.0.1:7411" env:"VERBATIM_KAFKA_LISTEN" placeholder:"ADDR" help:"Address of the embedded Kafka, on loopback. Default: 127.0.0.1:7411."`
	Broker     []string `name:"kafka-broker" env:"VERBATIM_KAFKA_BROKER" placeholder:"HOST:PORT" help:"Use this broker instead of the embedded Kafka, which is then not started."`
	Prefix     string   `name:"topic-prefix" env:"VERBATIM_TOPIC_PREFIX" help:"Prefix of every topic and group, so that installations can share a broker."`
	ClickHouse string   `name:"clickhouse" default:"127.0.0.1:7412" env:"VERBATIM_CLICKHOUSE_LISTEN" placeholder:"ADDR" help:"Address of the embedded ClickHouse, on loopback. Default: 127.0.0.1:7412."`
	Libchdb    string   `env:"VERBATIM_LIBCHDB" placeholder:"FILE" help:"The ClickHouse engine. Default: where \"make deps\" puts it."`
	Services   []string `default:"preparer,runner,recorder,projector" enum:"preparer,runner,recorder,projector,none" help:"Services to run beside the gateway, separated by commas; none for none. The others are started by you, on the addresses printed."`
	retentionFlags
	runnerFlags
	preparerFlags
	watchdogFlags
	artifactMakerFlags

	log    logFlags
	family *supervisor.Family // Not nil for the first process of a container.
}

// Validate is called by kong. Several of the flags it embeds have one, so that none is promoted.
func (c *upCommand) Validate() error {
	return errors.Join(c.retentionFlags.Validate(), c.preparerFlags.Validate(), c.watchdogFlags.Validate())
}

// Help is printed by kong below the flags.
func (upCommand) Help() string {
	return `Runs in the foreground. The addresses in use are printed, and written to DIR/endpoints.json as http, kafka and
clickhouse (each host:port). The stack is ready when /readyz answers 200. SIGTERM or Ctrl-C stops it cleanly: running
processes are ended (TERM, then KILL after the grace time) and what they wrote is kept.`
}

func (c *upCommand) validate() error {
	var errs []error
	errs = append(errs, gateway.ValidateAddress(c.HTTP, c.Token))
	if _, err := c.artifactMakerFlags.config(""); err != nil {
		errs = append(errs, err)
	}
	if len(c.Broker) > 0 {
		errs = append(errs, c.kafka("", nil).Validate())
	} else {
		errs = append(errs, embeddedkafka.Config{Addr: c.Kafka, DataDir: c.Data}.Validate())
	}
	errs = append(errs, clickhouse.Config{Addr: c.ClickHouse, DataDir: c.Data}.Validate())
	return errors.Join(errs...)
}

// kafka says how every service reaches the broker: the one that was named, or else the embedded one.
func (c *upCommand) kafka(embedded string, logger *slog.Logger) kafka.Config {
	brokers := c.Broker
	if len(brokers) == 0 {
		brokers = []string{embedded}
	}
	return kafka.Config{Brokers: brokers, ClientID: "verbatim", TopicPrefix: c.Prefix, Logger: logger}
}

// Run is called by kong.
func (c *upCommand) Run(ctx context.Context, s *session) error {
	if c.Data == "" {
		c.Data = defaultDataDir()
	}
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	c.log = s.log
	logger, err := s.logger()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if c.Data, err = filepath.Abs(c.Data); err != nil {
		return fmt.Errorf("find the data folder: %w", err)
	}
	if os.Getpid() == 1 { // Who else would reap what is left by "docker exec", say?
		c.family = &supervisor.Family{}
		defer c.family.Reap()()
	}
	group := lifecycle.NewGroup(logger)
	starting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	used, err := c.start(starting, group, logger)
	if err != nil {
		return err
	}
	if err := used.write(c.Data); err != nil {
		return errors.Join(err, stopAll(group))
	}
	if err := c.announce(s.stdout, used); err != nil {
		return errors.Join(err, stopAll(group))
	}
	failed := group.Wait(ctx)
	logger.InfoContext(ctx, "stopping")
	return errors.Join(failed, stopAll(group), removeEndpoints(c.Data))
}

func stopAll(group *lifecycle.Group) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return group.Stop(ctx)
}

func (c *upCommand) announce(w io.Writer, used endpoints) error {
	_, err := fmt.Fprintf(w, "verbatim is ready\n  http        http://%s\n  kafka       %s\n  clickhouse  http://%s\n  data        %s\n",
		used.HTTP, used.Kafka, used.ClickHouse, c.Data)
	return err
}

// start starts everything in order. When it fails, what had started is stopped.
func (c *upCommand) start(ctx context.Context, group *lifecycle.Group, logger *slog.Logger) (endpoints, error) {
	var used endpoints
	add := func(name string, s lifecycle.Service) error { return group.Start(ctx, name, s, stopTime) }
	registry, checks := telemetry.NewRegistry(), &telemetry.Checks{}

	database := &wiring.Embedded[*clickhouse.Server]{Open: func(ctx context.Context) (*clickhouse.Server, error) {
		return clickhouse.Start(ctx, clickhouse.Config{Addr: c.ClickHouse, DataDir: filepath.Join(c.Data, "clickhouse"), Library: c.Libchdb, Logger: logger})
	}}
	if err := add("clickhouse", database); err != nil {
		return used, err
	}
	var embedded string
	if len(c.Broker) == 0 {
		broker := &wiring.Embedded[*embeddedkafka.Server]{Open: func(ctx context.Context) (*embeddedkafka.Server, error) {
			return embeddedkafka.Start(ctx, embeddedkafka.Config{Addr: c.Kafka, DataDir: filepath.Join(c.Data, "kafka"), Logger: logger})
		}}
		if err := add("kafka", broker); err != nil {
			return used, err
		}
		embedded = broker.Server.Addr()
	}
	// Only who holds the folder's locks may touch its endpoints: another stack on it was refused above.
	if err := removeEndpoints(c.Data); err != nil {
		return used, errors.Join(err, stopAll(group))
	}
	base := wiring.Base{Kafka: c.kafka(embedded, logger), Logger: logger, Registry: registry, Checks: checks}
	used.Kafka, used.ClickHouse = base.Kafka.Brokers[0], database.Server.Addr()
	dsn := database.Server.DSN()
	if err := add("setup", wiring.Setup(base, dsn, c.retention(), c.KeepLog)); err != nil {
		return used, err
	}
	artifacts, err := c.artifactMakerFlags.config(c.Data)
	if err != nil {
		return used, errors.Join(usageError{err}, stopAll(group))
	}
	c.runnerFlags.DataDir = c.Data
	runnerConfig, err := c.runnerFlags.config(base)
	if err != nil {
		return used, errors.Join(usageError{err}, stopAll(group))
	}
	for _, service := range []struct {
		name string
		make func() lifecycle.Service
	}{
		{"recorder", func() lifecycle.Service {
			return wiring.Recorder(base, dsn, c.watchdogFlags.config(c.PrepareWithin), artifacts)
		}},
		{"projector", func() lifecycle.Service { return wiring.Projector(base, dsn, defaultKeep) }},
		{"runner", func() lifecycle.Service { return c.runner(base) }},
		{"preparer", func() lifecycle.Service { return wiring.Preparer(base, c.preparerFlags.config()) }},
	} {
		if slices.Contains(c.Services, service.name) {
			if err := add(service.name, service.make()); err != nil {
				return used, err
			}
		}
	}
	config := gateway.Config{Addr: c.HTTP, Token: c.Token}
	if slices.Contains(c.Services, "runner") {
		config.Processes = []prometheus.Gatherer{telemetry.Remote{Process: "runner", AddressFile: filepath.Join(runnerConfig.DataDir, wiring.HealthFile)}}
	}
	front := wiring.Gateway(base, config, dsn, artifacts)
	if err := add("gateway", front); err != nil {
		return used, err
	}
	used.HTTP = front.Addr()
	return used, nil
}
