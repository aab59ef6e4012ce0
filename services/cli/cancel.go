package cli

import (
	"context"
	"fmt"
	"os/user"

	"verbatim.dev/services/gateway/api"
)

type cancelCommand struct {
	executionArg
	serverFlags
	Reason string `help:"Why, for the record."`
	JSON   bool   `name:"json" help:"Print the answer as JSON."`
}

// Run is called by kong.
func (c *cancelCommand) Run(ctx context.Context, s *session) error {
	client, err := c.client(s)
	if err != nil {
		return err
	}
	defer client.Close()
	request := api.CancelRequest{Reason: c.Reason}
	if u, err := user.Current(); err == nil {
		request.RequestedBy = u.Username
	}
	answer, err := client.Cancel(ctx, c.ID, request)
	if err != nil {
		return explain(err, c.ID)
	}
	if c.JSON {
		return writeJSON(s.stdout, answer)
	}
	_, err = fmt.Fprintf(s.stdout, "asked to stop %s\n", c.ID)
	return err
}
