package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/gateway/api"
)

// events answers with every archived fact, one JSON object per line.
func (g *Gateway) events(ctx context.Context, in *rowInput) (*huma.StreamResponse, error) {
	_, stale, err := g.row(ctx, in.ID, in.wait(rowBudget))
	if err != nil {
		return nil, err
	}
	late := []string{}
	if stale != "" {
		late = append(late, stale)
	}
	if !g.recorder.Wait(ctx, g.partition(in.ID), in.wait(bytesBudget)) {
		late = append(late, g.late(staleRecorder))
	}
	next, stop := iter.Pull2(g.archive.Events(ctx, in.ID, -1))
	first, err, some := next()
	if err != nil {
		stop()
		return nil, g.unavailable(ctx, "the events cannot be read: the database does not answer", err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer stop()
		r, w := humago.Unwrap(hc)
		if !g.downloads.TryAcquire(1) {
			writeProblem(w, g.tooManyDownloads())
			return
		}
		defer g.downloads.Release(1)
		w.Header().Set("Content-Type", "application/x-ndjson")
		if len(late) > 0 {
			w.Header().Set(api.HeaderStale, strings.Join(late, ", "))
		}
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodHead {
			return
		}
		if err := writeFacts(w, first, some, next); err != nil {
			if ctx.Err() == nil {
				g.c.Logger.WarnContext(ctx, "a list of events was cut short", "execution", in.ID, "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

func (g *Gateway) tooManyDownloads() error {
	return problem(http.StatusServiceUnavailable, fmt.Sprintf("%d outputs and events are being read already, and that is the limit", g.c.MaxDownloads))
}

func writeFacts(w http.ResponseWriter, e clickhouse.ArchivedEvent, some bool, next func() (clickhouse.ArchivedEvent, error, bool)) error {
	body := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewEncoder(body)
	lines.SetEscapeHTML(false)
	for some {
		f, err := api.FactOf(e.Event, api.Position{Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, ReceivedAt: e.ReceivedAt})
		if err != nil {
			return err
		}
		if err := lines.Encode(f); err != nil {
			return fmt.Errorf("write event: %w", err)
		}
		if e, err, some = next(); err != nil {
			return err
		}
	}
	if err := body.Flush(); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}
