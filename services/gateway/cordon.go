package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

type cordonInput struct {
	ID   string `path:"id" doc:"The runner's id."`
	Body *api.CordonRequest
}

type cordonOutput struct {
	Body api.CordonResponse
}

func (g *Gateway) cordon(ctx context.Context, in *cordonInput) (*cordonOutput, error) {
	return g.setCordon(ctx, in, true)
}

func (g *Gateway) uncordon(ctx context.Context, in *cordonInput) (*cordonOutput, error) {
	return g.setCordon(ctx, in, false)
}

// setCordon says to a runner whether it may take attempts. One that is not heard of now gets it when it comes back.
func (g *Gateway) setCordon(ctx context.Context, in *cordonInput, on bool) (*cordonOutput, error) {
	var body api.CordonRequest
	if in.Body != nil {
		body = *in.Body
	}
	v := &validation{}
	v.text("body.reason", body.Reason, maxReason)
	v.text("body.requested_by", body.RequestedBy, maxRequestedBy)
	if len(v.faults) > 0 {
		return nil, problem(http.StatusUnprocessableEntity, "the request cannot be accepted", v.faults...)
	}
	if !g.knowsRunner(in.ID) {
		return nil, problem(http.StatusNotFound, fmt.Sprintf("no runner %q was heard of in the last minutes", cut(in.ID)))
	}
	call, err := events.NewExecutionID()
	if err != nil {
		return nil, err
	}
	p := events.Producer{Name: producer.Name + "." + call, Source: producer.Source}
	e, err := p.Event(in.ID, 0, 1, time.Now(), &executionv1.CordonRequested{Cordoned: on, RequestedBy: body.RequestedBy, Reason: body.Reason})
	if err != nil {
		return nil, err
	}
	if err := g.publish(ctx, events.TopicControl, e); err != nil {
		return nil, err
	}
	return &cordonOutput{Body: api.CordonResponse{Runner: in.ID, Cordoned: on, EventID: e.ID}}, nil
}

func (g *Gateway) knowsRunner(id string) bool {
	for _, r := range g.d.Fleet.List(time.Now()) {
		if r.Runner == id {
			return true
		}
	}
	return false
}
