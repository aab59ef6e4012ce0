package watchdog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events/kafka"
)

// Config says when something is overdue. Zero values stand for the defaults.
type Config struct {
	// Kafka is how the broker is reached.
	Kafka kafka.Config
	// Partitions is how many the log of facts has.
	Partitions int
	// Group is the name of the service whose offsets say what is archived. Default "recorder".
	Group string
	// HeartbeatInterval is how often a runner says that it lives. Default 2 s.
	HeartbeatInterval time.Duration
	// MissedHeartbeats is after how many of them that did not come a runner is lost. Default 15.
	MissedHeartbeats int
	// PrepareWithin is how long a request may wait for a preparer. Default 1 h.
	PrepareWithin time.Duration
	// SealWithin is how long a process may have ended before its output is sealed, while its runner lives. Default 1 h.
	SealWithin time.Duration
	// Margin is what is added to deadlines that others keep by their clocks. Default 1 min.
	Margin time.Duration
	// Sweep is the time between two passes. Default 1 s.
	Sweep time.Duration
	// ScanInterval is the time between two looks at the rows. Default 1 min.
	ScanInterval time.Duration
	// Horizon is how old an execution may be to be looked for in the rows every ScanInterval. Default 7 days, which is how long work stays
	// in Kafka. Older ones that still run are looked for when a partition is new.
	Horizon time.Duration
	// Clock is the system's by default.
	Clock Clock
	// Logger gets a line for each decision. Default: none.
	Logger *slog.Logger
	// Registry gets the metrics. Default: none.
	Registry prometheus.Registerer
}

// Clock tells the time. Times of one clock can be compared with each other also when the machine's clock is set.
type Clock interface {
	Now() time.Time
	// After is time.After.
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Silence is how long nothing may come from a runner.
func (c Config) Silence() time.Duration {
	return time.Duration(c.MissedHeartbeats) * c.HeartbeatInterval
}

// Validate reports everything that is wrong with the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	for name, d := range map[string]time.Duration{
		"heartbeat interval": c.HeartbeatInterval, "prepare within": c.PrepareWithin, "seal within": c.SealWithin,
		"margin": c.Margin, "sweep": c.Sweep, "scan interval": c.ScanInterval, "horizon": c.Horizon,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s %s: want a positive duration", name, d))
		}
	}
	if c.MissedHeartbeats < 0 || c.MissedHeartbeats == 1 {
		errs = append(errs, fmt.Errorf("missed heartbeats %d: want at least 2, since one can be late", c.MissedHeartbeats))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	set(&c.HeartbeatInterval, 2*time.Second)
	set(&c.PrepareWithin, time.Hour)
	set(&c.SealWithin, time.Hour)
	set(&c.Margin, time.Minute)
	set(&c.Sweep, time.Second)
	set(&c.ScanInterval, time.Minute)
	set(&c.Horizon, 7*24*time.Hour)
	if c.MissedHeartbeats == 0 {
		c.MissedHeartbeats = 15
	}
	if c.Group == "" {
		c.Group = "recorder"
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	return c
}
