package gateway

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// register adds the API's routes.
func (g *Gateway) register(api huma.API) {
	write := func(id, path, summary string) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: http.MethodPost, Path: path, Summary: summary,
			// huma calls a body too large that has exactly this size.
			MaxBodyBytes: g.c.MaxBody + 1, BodyReadTimeout: -1, // timedBody does it.
		}
	}
	read := func(id, path, summary, contentType string) huma.Operation {
		op := huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary}
		if contentType != "" {
			op.Responses = streamed(contentType)
		}
		return op
	}
	submit := write("submit", "/v1/executions", "Ask for an execution")
	submit.DefaultStatus = http.StatusAccepted
	huma.Register(api, submit, g.submit)
	cancel := write("cancel", "/v1/executions/{id}/cancel", "Ask to stop an execution")
	cancel.DefaultStatus = http.StatusAccepted
	huma.Register(api, cancel, g.cancel)
	for verb, handle := range map[string]func(context.Context, *cordonInput) (*cordonOutput, error){"cordon": g.cordon, "uncordon": g.uncordon} {
		summary := map[string]string{"cordon": "Let a runner take no more attempts", "uncordon": "Let a runner take attempts again"}[verb]
		op := write(verb, "/v1/runners/{id}/"+verb, summary)
		op.DefaultStatus = http.StatusAccepted
		huma.Register(api, op, handle)
	}
	query := write("query", "/v1/query", "Run one reading statement")
	query.Responses = streamed("*/*")
	huma.Register(api, query, g.query)

	huma.Register(api, read("runners", "/v1/runners", "List the runners", ""), g.runners)
	huma.Register(api, read("list", "/v1/executions", "List executions, newest first", ""), g.list)
	huma.Register(api, read("get", "/v1/executions/{id}", "Read an execution's row", ""), g.get)
	huma.Register(api, read("output", "/v1/executions/{id}/output/{stream}", "Read the exact bytes of a stream", "application/octet-stream"), g.output)
	huma.Register(api, read("events", "/v1/executions/{id}/events", "Read an execution's facts", "application/x-ndjson"), g.events)
	huma.Register(api, read("tail", "/v1/executions/{id}/tail", "Follow an execution's facts", "text/event-stream"), g.tail)
}

func streamed(contentType string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: http.StatusText(http.StatusOK),
		Content:     map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
	}}
}
