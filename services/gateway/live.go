package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/tail"
)

type tailInput struct {
	ID          string `path:"id"`
	LastEventID string `header:"Last-Event-ID" doc:"Resume after this Kafka offset."`
	After       string `query:"after" doc:"The same, for clients that cannot set headers."`
}

// tail follows an execution as server-sent events.
func (g *Gateway) tail(ctx context.Context, in *tailInput) (*huma.StreamResponse, error) {
	resume := in.LastEventID
	if resume == "" {
		resume = in.After
	}
	after := int64(-1)
	if resume != "" {
		var err error
		if after, err = strconv.ParseInt(resume, 10, 64); err != nil || after < 0 {
			return nil, problem(http.StatusUnprocessableEntity, "the tail cannot be resumed", fault("header.Last-Event-ID", "is no Kafka offset"))
		}
	}
	sealed, err := g.followable(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if !g.tails.TryAcquire(1) {
		g.metrics.refused.Inc()
		return nil, problem(http.StatusServiceUnavailable, fmt.Sprintf("%d tails are open already, and that is the limit", g.c.MaxTails))
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		g.metrics.tails.Inc()
		defer g.metrics.tails.Dec()
		defer g.tails.Release(1)
		r, w := humago.Unwrap(hc)
		s := &sse{w: w, controller: http.NewResponseController(w)}
		if s.begin(); r.Method == http.MethodHead {
			return
		}
		known := g.known(r.Context(), in.ID, after)
		if err := g.follow(r.Context(), s, tail.Request{ID: in.ID, After: after, Sealed: sealed, Known: known}); err != nil && r.Context().Err() == nil {
			g.c.Logger.DebugContext(r.Context(), "a tail ended early", "execution", in.ID, "error", err)
		}
	}}, nil
}

// known is what the facts up to an offset say, but the output; nil for the offset -1. Without the database it is nothing: then nobody
// knows whether another attempt follows.
func (g *Gateway) known(ctx context.Context, id string, after int64) *execution.State {
	if after < 0 {
		return nil
	}
	state := execution.New(id)
	for story, err := range g.archive.Stories(ctx, []string{id}) {
		if err != nil {
			g.c.Logger.WarnContext(ctx, "a tail goes on without the events that came before", "execution", id, "error", err)
			break
		}
		for _, f := range story.Facts {
			if f.Offset <= after {
				state.Apply(f.Event, f.ReceivedAt)
			}
		}
	}
	return state
}

// followable returns whether nothing more is expected of the execution, or an error when there is no such
// execution.
func (g *Gateway) followable(ctx context.Context, id string) (sealed bool, err error) {
	if _, err := events.ParseExecutionID(id); err == nil {
		if row, found, err := g.stored(ctx, id); err != nil || found {
			if err == nil {
				err = gone(row)
			}
			return row.Sealed && row.Status != execution.StatusRetrying, err
		}
		if _, found := g.accepted.get(id); found {
			return false, nil
		}
	}
	row, _, err := g.row(ctx, id, rowBudget)
	return row.Sealed && row.Status != execution.StatusRetrying, err
}

// follow writes facts as they come, and a sign of life when none does. It returns when the tail is over
// or the client is gone.
func (g *Gateway) follow(ctx context.Context, s *sse, r tail.Request) error {
	ctx, cancel := context.WithCancel(ctx)
	facts := make(chan tail.Fact)
	ended := make(chan error, 1)
	go func() {
		defer close(facts)
		for f, err := range g.hub.Follow(ctx, r) {
			if err != nil {
				ended <- err
				return
			}
			select {
			case facts <- f:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
		ended <- nil
	}()
	defer func() {
		cancel()
		for range facts { // Wait until nobody uses the request any more.
		}
	}()
	heartbeat := time.NewTicker(g.c.Heartbeat)
	defer heartbeat.Stop()
	for {
		var err error
		select {
		case f, more := <-facts:
			if !more {
				return s.end(<-ended)
			}
			err = s.facts(f, facts)
		case <-heartbeat.C:
			err = s.comment("alive")
		}
		if err != nil {
			return err
		}
	}
}

// sse writes server-sent events (HTML standard, section 9.2).
type sse struct {
	w          http.ResponseWriter
	controller *http.ResponseController
	buf        bytes.Buffer
}

func (s *sse) begin() {
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would collect it.
	s.w.WriteHeader(http.StatusOK)
	s.buf.WriteString("retry: 1000\n\n")
	_ = s.flush() // Who is gone already is noticed at the next write.
}

// facts writes a fact and those that wait behind it, up to a good size for one write.
func (s *sse) facts(f tail.Fact, more <-chan tail.Fact) error {
	for {
		if err := s.fact(f); err != nil {
			return err
		}
		if s.buf.Len() >= 64<<10 {
			return s.flush()
		}
		var ok bool
		select {
		case f, ok = <-more:
			if !ok {
				return s.flush() // The next look at the channel finds the end again.
			}
		default:
			return s.flush()
		}
	}
}

func (s *sse) fact(f tail.Fact) error {
	shown, err := api.FactOf(f.Event, api.Position{Topic: events.TopicExecutions, Partition: f.Partition, Offset: f.Offset, ReceivedAt: f.ReceivedAt})
	if err != nil {
		return err
	}
	fmt.Fprintf(&s.buf, "id: %d\nevent: %s\ndata: ", f.Offset, eventName(shown.Name))
	encoder := json.NewEncoder(&s.buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(shown); err != nil {
		return fmt.Errorf("encode event %s: %w", shown.ID, err)
	}
	s.buf.WriteByte('\n')
	return nil
}

// eventName keeps a foreign type from being read as another line, or as an end.
func eventName(name string) string {
	for _, c := range []byte(name) {
		if c != '.' && c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return "Other"
		}
	}
	switch name {
	case api.TailEnd, api.TailShutdown, api.TailError, "message", "open", "":
		return "Other"
	}
	return name
}

func (s *sse) comment(text string) error {
	s.buf.WriteString(": " + text + "\n\n")
	return s.flush()
}

// end says why there is nothing more.
func (s *sse) end(why error) error {
	name, data := api.TailEnd, any(struct{}{})
	switch {
	case why == nil:
	case errors.Is(why, context.Canceled):
		return why
	case errors.Is(why, tail.ErrStopped):
		name = api.TailShutdown
	case errors.Is(why, tail.ErrOffsetGone):
		name, data = api.TailError, apiProblem(problem(http.StatusGone, "facts of this execution left Kafka before they were archived; events and output show what is there"))
	default:
		name, data = api.TailError, apiProblem(problem(http.StatusServiceUnavailable, "the tail cannot go on now: the database does not answer"))
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode end of tail: %w", err)
	}
	fmt.Fprintf(&s.buf, "event: %s\ndata: %s\n\n", name, encoded)
	return errors.Join(why, s.flush())
}

func (s *sse) flush() error {
	defer s.buf.Reset()
	if _, err := s.w.Write(s.buf.Bytes()); err != nil {
		return fmt.Errorf("write tail: %w", err)
	}
	if err := s.controller.Flush(); err != nil {
		return fmt.Errorf("write tail: %w", err)
	}
	return nil
}
