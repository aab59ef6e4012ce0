package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
)

type cancelInput struct {
	ID   string `path:"id"`
	Body *api.CancelRequest
}

type cancelOutput struct {
	Body api.CancelResponse
}

// cancel asks for an end. Every call is a fact of its own, since each says who asked and why. A lost
// execution may still run somewhere, so that one can be cancelled, too.
func (g *Gateway) cancel(ctx context.Context, in *cancelInput) (*cancelOutput, error) {
	var body api.CancelRequest
	if in.Body != nil {
		body = *in.Body
	}
	v := &validation{}
	v.text("body.reason", body.Reason, maxReason)
	v.text("body.requested_by", body.RequestedBy, maxRequestedBy)
	if len(v.faults) > 0 {
		return nil, problem(http.StatusUnprocessableEntity, "the request cannot be accepted", v.faults...)
	}
	row, _, err := g.row(ctx, in.ID, rowBudget)
	// A process can be stopped without the database. Who has no such execution ignores it.
	if away := huma.StatusError(nil); err != nil && (!errors.As(err, &away) || away.GetStatus() != http.StatusServiceUnavailable) {
		return nil, err
	}
	switch row.Status {
	case execution.StatusSucceeded, execution.StatusFailed, execution.StatusTimeout, execution.StatusCancelled, execution.StatusDeleted:
		return nil, problem(http.StatusConflict, fmt.Sprintf("execution %s has ended already: %s", in.ID, row.Status))
	}
	call, err := events.NewExecutionID()
	if err != nil {
		return nil, err
	}
	p := events.Producer{Name: producer.Name + "." + call, Source: producer.Source}
	e, err := p.Event(in.ID, 0, 1, time.Now(), &executionv1.CancelRequested{RequestedBy: body.RequestedBy, Reason: body.Reason})
	if err != nil {
		return nil, err
	}
	if err := g.publish(ctx, events.TopicControl, e); err != nil {
		return nil, err
	}
	return &cancelOutput{Body: api.CancelResponse{ExecutionID: in.ID, EventID: e.ID}}, nil
}
