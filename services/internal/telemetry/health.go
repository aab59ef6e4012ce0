package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTime bounds one readiness check.
const checkTime = 3 * time.Second

// Check answers nil when what it checks can do its work now.
type Check func(ctx context.Context) error

// Checks are readiness checks by name. They may be added while they are asked.
type Checks struct {
	mu     sync.Mutex
	checks map[string]Check
}

// Add adds a check or replaces the one of that name.
func (c *Checks) Add(name string, check Check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checks == nil {
		c.checks = map[string]Check{}
	}
	c.checks[name] = check
}

// All returns the checks by name.
func (c *Checks) All() map[string]Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.checks)
}

// Run asks every check at the same time and returns each one's answer, nil for ready.
func (c *Checks) Run(ctx context.Context) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	checks := c.All()
	answers := make(map[string]error, len(checks))
	var mu sync.Mutex
	var asked sync.WaitGroup
	for name, check := range checks {
		asked.Go(func() {
			err := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			answers[name] = err
		})
	}
	asked.Wait()
	return answers
}

// NewRegistry returns a registry with the process's own metrics.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Server answers /livez, /readyz and /metrics for a service that has no HTTP server of its own.
type Server struct {
	addr     string
	handler  http.Handler
	server   *http.Server
	listener net.Listener
	done     chan struct{}
}

// NewServer returns a server for a loopback address; port 0 is any free one.
func NewServer(addr string, checks *Checks, gatherer prometheus.Gatherer) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /readyz", checks)
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	return &Server{addr: addr, handler: mux, done: make(chan struct{})}
}

// ServeHTTP answers 200 when every check is ready and 503 otherwise, with each check's answer.
func (c *Checks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, body := http.StatusOK, map[string]string{}
	for name, err := range c.Run(r.Context()) {
		body[name] = "ready"
		if err != nil {
			status, body[name] = http.StatusServiceUnavailable, err.Error()
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"ready": status == http.StatusOK, "checks": body}) // The client may be gone.
}

// Start listens.
func (s *Server) Start(ctx context.Context) error {
	if err := onLoopback(s.addr); err != nil {
		return err
	}
	var err error
	if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr); err != nil {
		return fmt.Errorf("listen for health checks: %w", err)
	}
	s.server = &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(s.listener) // Ends with Stop; the listener is ours and does not fail by itself.
	}()
	return nil
}

// Addr is the address in use.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Stop ends the server.
func (s *Server) Stop(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	<-s.done
	if errors.Is(err, context.DeadlineExceeded) {
		return s.server.Close()
	}
	return err
}
