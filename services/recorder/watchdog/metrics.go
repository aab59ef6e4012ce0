package watchdog

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	open prometheus.Gauge
	said *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "verbatim_recorder_open_executions", Help: "Executions that the watchdog watches here.",
		}),
		said: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "verbatim_recorder_watchdog_facts_total", Help: "What the watchdog said, by kind.",
		}, []string{"kind"}),
	}
	for _, c := range []prometheus.Collector{m.open, m.said} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
