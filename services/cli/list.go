package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"verbatim.dev/projections/execution"
	"verbatim.dev/services/client"
)

type listCommand struct {
	readFlags
	Status string            `placeholder:"S" help:"Only those of a status: ${statuses}."`
	Since  string            `placeholder:"D" help:"Only those requested since: a duration like 90s, 1h, 36h, or a time (RFC 3339)."`
	Label  map[string]string `mapsep:"none" placeholder:"K=V" help:"Only those with a label. May be given again."`
	Limit  int               `default:"100" placeholder:"N" help:"At most so many, 0 for all. Default: 100."`
	JSON   bool              `name:"json" help:"Print the rows as one JSON array, a row a line."`
}

var statuses = []string{
	execution.StatusRequested, execution.StatusPrepared, execution.StatusRunning, execution.StatusRetrying, execution.StatusSucceeded,
	execution.StatusFailed, execution.StatusTimeout, execution.StatusCancelled, execution.StatusLost, execution.StatusDeleted,
}

// Validate is called by kong.
func (c *listCommand) Validate() error {
	if c.Status != "" && !slices.Contains(statuses, c.Status) {
		return fmt.Errorf("--status %q is none of %s", c.Status, strings.Join(statuses, ", "))
	}
	if c.Since != "" {
		_, notDuration := time.ParseDuration(c.Since)
		_, notTime := time.Parse(time.RFC3339, c.Since)
		if notDuration != nil && notTime != nil {
			return fmt.Errorf("--since %q is neither a duration like 1h30m nor a time like 2026-11-25T12:00:00Z", c.Since)
		}
	}
	if c.Limit < 0 {
		return fmt.Errorf("--limit is %d, it must not be negative", c.Limit)
	}
	return nil
}

// Run is called by kong.
func (c *listCommand) Run(ctx context.Context, s *session) error {
	api, err := c.client(s)
	if err != nil {
		return err
	}
	defer api.Close()
	rows := api.All(ctx, client.ListOptions{Status: c.Status, Since: c.Since, Labels: c.Label, Limit: min(c.Limit, 500)})
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	// A coloured cell would be counted too wide, so the list has no colours.
	if !c.JSON {
		fmt.Fprintln(table, "EXECUTION\tSTATUS\tEXIT\tSTDOUT\tSTDERR\tCOMPLETE\tREQUESTED\tCOMMAND")
	}
	written := 0
	for row, err := range rows {
		if err != nil {
			return err
		}
		if c.JSON {
			line, err := json.Marshal(row)
			if err != nil {
				return fmt.Errorf("write row %s: %w", row.ExecutionID, err)
			}
			before := ",\n"
			if written == 0 {
				before = "[\n"
			}
			if _, err := fmt.Fprintf(s.stdout, "%s%s", before, line); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
		} else {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.ExecutionID, row.Status, exitOf(row),
				known(row.StdoutBytes), known(row.StderrBytes), known(row.Complete), shortTime(row.RequestedAt), cut(fmt.Sprintf("%q", row.Command), 50))
		}
		if written++; written == c.Limit {
			break
		}
	}
	switch {
	case c.JSON && written == 0:
		_, err = fmt.Fprintln(s.stdout, "[]")
	case c.JSON:
		_, err = fmt.Fprint(s.stdout, "\n]\n")
	default:
		err = table.Flush()
	}
	return err
}

func exitOf(r execution.Row) string {
	if r.Signal != nil {
		return *r.Signal
	}
	return known(r.ExitCode)
}

func known[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}
