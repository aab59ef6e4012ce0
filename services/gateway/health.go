package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"verbatim.dev/events"
	"verbatim.dev/services/gateway/api"
)

// checkTimeout is what one part has to show that it works.
const checkTimeout = 3 * time.Second

// registerPlain adds the routes that are not the API's.
func (g *Gateway) registerPlain() {
	g.routes.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	g.routes.HandleFunc("GET /readyz", g.ready)
	g.routes.Handle("GET /metrics", promhttp.HandlerFor(append(prometheus.Gatherers{g.c.Registry}, g.c.Processes...), promhttp.HandlerOpts{}))
}

func (g *Gateway) ready(w http.ResponseWriter, r *http.Request) {
	checks := append([]Check{
		{"kafka", func(ctx context.Context) error {
			_, err := g.d.Offsets.EndOffsets(ctx, events.TopicRequests)
			return err
		}},
		{"clickhouse_http", g.clickhouseAnswers},
	}, g.d.Checks...)
	health := api.Health{Ready: true, Checks: make([]api.Check, len(checks))}
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
			defer cancel()
			health.Checks[i] = api.Check{Name: c.Name, OK: true}
			if err := c.Check(ctx); err != nil {
				health.Checks[i] = api.Check{Name: c.Name, Error: err.Error()}
			}
		})
	}
	all.Wait()
	status := http.StatusOK
	for _, c := range health.Checks {
		if !c.OK {
			health.Ready, status = false, http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(health) // The caller is gone; nobody is left to tell.
}

func (g *Gateway) clickhouseAnswers(ctx context.Context) error {
	resp, err := g.clickhouse.ask(ctx, "SELECT 1", "TSV", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBytes)); err != nil {
		return fmt.Errorf("ask clickhouse: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("clickhouse answers with status %d", resp.StatusCode)
	}
	return nil
}
