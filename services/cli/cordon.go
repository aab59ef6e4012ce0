package cli

import (
	"context"
	"fmt"
	"os/user"
	"time"

	"verbatim.dev/services/gateway/api"
)

// cordonFlags are those of cordon and uncordon.
type cordonFlags struct {
	serverFlags
	Runner string `arg:"" help:"The runner's id; \"verbatim runners\" lists them."`
	Reason string `help:"Why, for the record."`
	JSON   bool   `name:"json" help:"Print the answer as JSON."`
}

type cordonCommand struct{ cordonFlags }

// Help is printed by kong below the flags.
func (cordonCommand) Help() string {
	return `The runner finishes what it has. It stays cordoned over restarts, until it is uncordoned. Returns when the runner's heartbeat says so.`
}

// Run is called by kong.
func (c *cordonCommand) Run(ctx context.Context, s *session) error { return c.set(ctx, s, true) }

type uncordonCommand struct{ cordonFlags }

// Run is called by kong.
func (c *uncordonCommand) Run(ctx context.Context, s *session) error { return c.set(ctx, s, false) }

// followTime is how long a runner that lives may take to follow; a heartbeat comes at once when something changes.
const followTime = 15 * time.Second

func (c *cordonFlags) set(ctx context.Context, s *session, on bool) error {
	client, err := c.client(s)
	if err != nil {
		return err
	}
	defer client.Close()
	request := api.CordonRequest{Reason: c.Reason}
	if u, err := user.Current(); err == nil {
		request.RequestedBy = u.Username
	}
	answer, err := client.Cordon(ctx, c.Runner, on, request)
	if err != nil {
		return err
	}
	word := map[bool]string{true: "cordoned", false: "uncordoned"}[on]
	for deadline := time.Now().Add(followTime); ; {
		runners, err := client.Runners(ctx)
		if err != nil {
			return err
		}
		state := ""
		for _, r := range runners {
			if r.Runner == c.Runner {
				state = r.State
			}
		}
		if follows := (state == api.RunnerCordoned) == on; follows && (on || state == api.RunnerReady) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("runner %s was told to be %s and has not said that it is: it is %s, and follows when it comes back", c.Runner, word, state)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if c.JSON {
		return writeJSON(s.stdout, answer)
	}
	_, err = fmt.Fprintf(s.stdout, "%s is %s\n", c.Runner, word)
	return err
}
