package gateway

import (
	"context"
	"time"

	"verbatim.dev/services/gateway/api"
)

type runnersOutput struct {
	Body api.RunnersResponse
}

// runners lists the runners.
func (g *Gateway) runners(context.Context, *struct{}) (*runnersOutput, error) {
	return &runnersOutput{Body: api.RunnersResponse{Runners: g.d.Fleet.List(time.Now())}}, nil
}
