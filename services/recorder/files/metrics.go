package files

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	recorded, mismatches, failures, bytes, parts prometheus.Counter
	waiting                                      prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "verbatim_recorder_artifact" + name, Help: help})
	}
	m := &metrics{
		recorded:   counter("s_recorded_total", "OutputRecorded facts published."),
		mismatches: counter("_mismatches_total", "Artifacts that have not the bytes that the seal states. Each is a loss: alarm on it."),
		failures:   counter("_failures_total", "Times that artifacts could not be made and were tried again."),
		bytes:      counter("_bytes_total", "Bytes of output written into artifacts, before any compression."),
		parts:      counter("_parts_total", "Parts written of attempts whose process runs."),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "verbatim_recorder_artifacts_waiting", Help: "Attempts that ended and whose artifacts are not recorded yet.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.recorded, m.mismatches, m.failures, m.bytes, m.parts, m.waiting} {
		errs = append(errs, registry.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
