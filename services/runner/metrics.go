package runner

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	running  prometheus.Gauge
	late     prometheus.Gauge
	slots    prometheus.Gauge
	started  prometheus.Counter
	ended    *prometheus.CounterVec
	captured *prometheus.CounterVec
	retries  prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		running:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "verbatim_runner_running", Help: "Attempts that this runner has, up to their last acknowledged fact."}),
		late:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "verbatim_runner_late", Help: "Attempts that are over, and whose output is listened to since another process has it."}),
		slots:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "verbatim_runner_slots", Help: "Attempts that this runner may have at the same time."}),
		started:  prometheus.NewCounter(prometheus.CounterOpts{Name: "verbatim_runner_started_total", Help: "Processes started."}),
		ended:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "verbatim_runner_ended_total", Help: "Attempts ended, by how."}, []string{"outcome"}),
		captured: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "verbatim_runner_captured_bytes_total", Help: "Bytes of output cut into chunks."}, []string{"stream"}),
		retries:  prometheus.NewCounter(prometheus.CounterOpts{Name: "verbatim_runner_publish_retries_total", Help: "Publish calls that failed and were made again."}),
	}
	for _, c := range []prometheus.Collector{m.running, m.late, m.slots, m.started, m.ended, m.captured, m.retries} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
