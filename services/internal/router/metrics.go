package router

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/failure"
)

// metrics of one service. Every message received ends as handled, dead-lettered or given back.
type metrics struct {
	received     *prometheus.CounterVec
	handled      prometheus.Counter
	failed       *prometheus.CounterVec
	deadLettered prometheus.Counter
	seconds      prometheus.Observer
	lag          *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer, service string) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "verbatim", Subsystem: "messages", Name: name, Help: help},
			append([]string{"service"}, labels...))
	}
	received := counter("received_total", "Messages delivered to a handler, redeliveries included.", "topic")
	handled := counter("handled_total", "Messages handled.")
	failed := counter("failed_total", "Failed tries, by kind: transient ones are tried again, permanent ones dead-lettered.", "kind")
	dead := counter("dead_lettered_total", "Messages written to the dead-letter topic.")
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "verbatim", Subsystem: "messages", Name: "handling_seconds",
		Help:    "Time from delivery to the last word of the handler, pauses between tries included.",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // 1 ms to 262 s
	}, []string{"service"})
	lag := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "verbatim", Subsystem: "messages", Name: "lag",
		Help: "Records behind the message delivered last, as of its fetch.",
	}, []string{"service", "topic", "partition"})

	var err error
	received, handled = registered(r, received, &err), registered(r, handled, &err)
	failed, dead = registered(r, failed, &err), registered(r, dead, &err)
	seconds, lag = registered(r, seconds, &err), registered(r, lag, &err)
	if err != nil {
		return nil, err
	}
	own := prometheus.Labels{"service": service}
	return &metrics{
		received: received.MustCurryWith(own), handled: handled.With(own), failed: failed.MustCurryWith(own),
		deadLettered: dead.With(own), seconds: seconds.With(own), lag: lag.MustCurryWith(own),
	}, nil
}

// registered registers c, or returns the collector that another router registered before.
func registered[C prometheus.Collector](r prometheus.Registerer, c C, failed *error) C {
	if r == nil {
		return c
	}
	err := r.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing
		}
	}
	*failed = errors.Join(*failed, err)
	return c
}

func (m *metrics) failure(err error) {
	kind := "transient"
	if failure.IsPermanent(err) {
		kind = "permanent"
	}
	m.failed.WithLabelValues(kind).Inc()
}

// measure counts messages and takes the time.
func (f *frame) measure(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		topic := message.SubscribeTopicFromCtx(m.Context())
		f.metrics.received.WithLabelValues(topic).Inc()
		if p, ok := kafka.PositionFromContext(m.Context()); ok {
			f.metrics.lag.WithLabelValues(topic, strconv.Itoa(p.Partition)).Set(float64(p.HighWatermark - p.Offset - 1))
		}
		began := time.Now()
		produced, err := next(m)
		f.metrics.seconds.Observe(time.Since(began).Seconds())
		if err == nil {
			f.metrics.handled.Inc()
		}
		return produced, err
	}
}

// Watch returns what counts messages that are handled many at a time (package sink) in the metrics of a router. began is when the
// first of them came.
func Watch(r prometheus.Registerer, service, topic string) (func(messages []*message.Message, began time.Time), error) {
	m, err := newMetrics(r, service)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return func(messages []*message.Message, began time.Time) {
		m.received.WithLabelValues(topic).Add(float64(len(messages)))
		m.handled.Add(float64(len(messages)))
		took := time.Since(began).Seconds()
		behind := map[int]int64{}
		for _, x := range messages {
			m.seconds.Observe(took)
			if p, ok := kafka.PositionFromContext(x.Context()); ok {
				behind[p.Partition] = p.HighWatermark - p.Offset - 1
			}
		}
		for partition, n := range behind {
			m.lag.WithLabelValues(topic, strconv.Itoa(partition)).Set(float64(n))
		}
	}, nil
}
