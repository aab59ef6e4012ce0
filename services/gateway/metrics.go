package gateway

import (
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.HistogramVec
	tails    prometheus.Gauge
	refused  prometheus.Counter
	stale    *prometheus.CounterVec
	accepted prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "verbatim_gateway_request_seconds", Help: "How long requests took, tails included.",
			Buckets: []float64{.005, .025, .1, .5, 1, 2.5, 10, 60, 600},
		}, []string{"route", "status"}),
		tails:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "verbatim_gateway_tails", Help: "Live tails."}),
		refused:  prometheus.NewCounter(prometheus.CounterOpts{Name: "verbatim_gateway_tails_refused_total", Help: "Tails refused because there were too many."}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{Name: "verbatim_gateway_accepted_total", Help: "Executions that were accepted."}),
		stale: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "verbatim_gateway_stale_answers_total", Help: "Answers that may lack the newest facts, by whom was waited for.",
		}, []string{"service"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.tails, m.refused, m.stale, m.accepted} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// request counts by route, never by path: a path holds what callers choose.
func (m *metrics) request(r *http.Request, status int, took time.Duration) {
	route := r.Pattern
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
}

func stack() string {
	s := debug.Stack()
	return string(s[:min(len(s), 8<<10)])
}
