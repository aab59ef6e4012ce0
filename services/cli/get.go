package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"verbatim.dev/projections/execution"
	"verbatim.dev/services/internal/telemetry"
)

type getCommand struct {
	executionArg
	readFlags
	JSON bool `name:"json" help:"Print the whole row as one JSON object."`
}

// Run is called by kong.
func (c *getCommand) Run(ctx context.Context, s *session) error {
	api, err := c.client(s)
	if err != nil {
		return err
	}
	defer api.Close()
	row, err := api.Get(ctx, c.ID)
	if err != nil {
		return explain(err, c.ID)
	}
	s.warnStale(row.Stale)
	if c.JSON {
		return writeJSON(s.stdout, row.Raw)
	}
	return writeRow(s.stdout, row.Row)
}

// writeRow shows what is known of a row, for people.
func writeRow(w io.Writer, r execution.Row) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(table, name+"\t"+format+"\n", args...) }
	line("execution", "%s", r.ExecutionID)
	line("status", "%s", colour(w, r.Status))
	if r.ExitCode != nil {
		line("exit code", "%d", *r.ExitCode)
	}
	if r.Signal != nil {
		line("signal", "%s", *r.Signal)
	}
	if r.Reason != nil {
		line("reason", "%s", *r.Reason)
	}
	if r.Error != nil {
		line("error", "%s", strings.ReplaceAll(*r.Error, "\n", "\n\t"))
		line("error source", "%s", *r.ErrorSource)
	}
	if len(r.Command) > 0 {
		line("command", "%q", r.Command)
	}
	if len(r.Labels) > 0 {
		var labels []string
		for k, v := range r.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		line("labels", "%s", strings.Join(labels, " "))
	}
	line("requested", "%s", shortTime(r.RequestedAt))
	line("started", "%s", shortTime(r.StartedAt))
	line("ended", "%s", shortTime(r.EndedAt))
	if r.DurationMS != nil {
		line("took", "%s", time.Duration(*r.DurationMS)*time.Millisecond)
	}
	if r.Runner != nil {
		line("runner", "%s", *r.Runner)
	}
	if r.Attempt != nil {
		line("attempt", "%d", *r.Attempt)
	}
	streamLine := func(name string, bytes, left *uint64) {
		if bytes == nil {
			return
		}
		text := fmt.Sprintf("%d bytes", *bytes)
		if left != nil && *left > 0 {
			text += fmt.Sprintf(", of which the row's text leaves out %d", *left)
		}
		line(name, "%s", text)
	}
	fileLine := func(name string, uri *string, bytes *uint64, sum *string, match *bool) {
		if uri == nil && bytes != nil && sum != nil {
			line(name, "removed by retention; it had %d bytes, sha256 %s", *bytes, *sum)
		}
		if uri == nil {
			return
		}
		text := *uri
		if match != nil && !*match {
			text += ", which has NOT the bytes that the runner counted"
		}
		line(name, "%s", text)
	}
	streamLine("stdout", r.StdoutBytes, r.StdoutBytesTruncated)
	streamLine("stderr", r.StderrBytes, r.StderrBytesTruncated)
	fileLine("stdout log", r.StdoutLog, r.StdoutLogBytes, r.StdoutLogSHA256, r.StdoutLogMatch)
	fileLine("stderr log", r.StderrLog, r.StderrLogBytes, r.StderrLogSHA256, r.StderrLogMatch)
	line("complete", "%s", completeness(r))
	maskedLine := func(stream string, ranges *uint64) {
		if ranges != nil && *ranges > 0 {
			line("masked", "%d ranges of %s, because they were secrets", *ranges, stream)
		}
	}
	maskedLine("stdout", r.StdoutMaskedRanges)
	maskedLine("stderr", r.StderrMaskedRanges)
	for _, e := range r.Elided {
		line("left out", "%s bytes %d to %d (output limit)", e.Stream, e.Start, e.End)
	}
	for _, m := range r.Missing {
		line("missing", "%s bytes %d to %d", m.Stream, m.Start, m.End)
	}
	for _, c := range r.Contradictions {
		line("contradiction", "%s", c)
	}
	return table.Flush()
}

func completeness(r execution.Row) string {
	switch {
	case r.Complete == nil && !r.Sealed:
		return "not known yet"
	case r.Complete == nil:
		return "not known"
	case *r.Complete && len(r.Elided) > 0:
		return "yes, every byte is in the log but those left out on purpose"
	case *r.Complete:
		return "yes, every byte is in the log"
	default:
		return "no"
	}
}

// colour marks a status on a terminal.
func colour(w io.Writer, status string) string {
	if !telemetry.IsTerminal(w) {
		return status
	}
	code := map[string]string{execution.StatusSucceeded: "32", execution.StatusRunning: "36", execution.StatusRetrying: "33", execution.StatusFailed: "31", execution.StatusTimeout: "31", execution.StatusLost: "31", execution.StatusCancelled: "33"}[status]
	if code == "" {
		return status
	}
	return "\033[" + code + "m" + status + "\033[0m"
}
