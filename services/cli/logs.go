package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"verbatim.dev/services/client"
)

type logsCommand struct {
	executionArg
	readFlags
	Stream  string `enum:"stdout,stderr,both" default:"both" help:"Write only this stream, to stdout: stdout or stderr. Default: stdout to stdout and stderr to stderr, in the order in which they were captured."`
	Follow  bool   `short:"f" help:"Go on writing until the execution's end."`
	Attempt uint32 `help:"Write the output of this attempt, with --stream. Default: the latest."`
}

// Run is called by kong.
func (c *logsCommand) Run(ctx context.Context, s *session) error {
	if c.Attempt != 0 && (c.Stream == "both" || c.Follow) {
		return usageError{errors.New("--attempt goes with --stream and without --follow")}
	}
	api, err := c.client(s)
	if err != nil {
		return err
	}
	defer api.Close()
	if c.Stream != "both" && !c.Follow {
		return c.copy(ctx, s, api)
	}
	f := follower{stdout: s.stdout, stderr: s.stderr}
	if c.Stream != "both" {
		f.only, f.stderr = c.Stream, s.stdout
	}
	facts := api.Events
	if c.Follow {
		facts = api.Tail
	}
	for fact, err := range facts(ctx, c.ID) {
		if err != nil {
			return explain(err, c.ID)
		}
		if err := f.take(fact); err != nil {
			return err
		}
	}
	if err := f.finish(); err != nil {
		return err
	}
	f.warn(s.stderr)
	return nil
}

// copy writes one stream as the server sends it.
func (c *logsCommand) copy(ctx context.Context, s *session, api *client.Client) error {
	out, err := api.Output(ctx, c.ID, c.Stream, client.OutputOptions{Attempt: c.Attempt})
	if err != nil {
		return explain(err, c.ID)
	}
	defer out.Close()
	s.warnStale(out.Stale)
	if _, err := io.Copy(s.stdout, out); err != nil {
		return fmt.Errorf("write %s: %w", c.Stream, err)
	}
	found, err := out.MissingFound()
	if err != nil {
		return err
	}
	for _, r := range append(out.Missing, found...) {
		fmt.Fprintf(s.stderr, "verbatim: %s bytes %d to %d are missing\n", c.Stream, r.Start, r.End)
	}
	for _, r := range out.Elided {
		warnLeftOut(s.stderr, c.Stream, r.Start, r.End)
	}
	return nil
}
