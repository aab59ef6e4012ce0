package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/telemetry"
)

type runnersCommand struct {
	serverFlags
	JSON bool `name:"json" help:"Print them as one JSON object."`
}

// Run is called by kong.
func (c *runnersCommand) Run(ctx context.Context, s *session) error {
	gateway, err := c.client(s)
	if err != nil {
		return err
	}
	defer gateway.Close()
	runners, err := gateway.Runners(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(s.stdout, api.RunnersResponse{Runners: runners})
	}
	return writeRunners(s.stdout, runners, time.Now())
}

func writeRunners(w io.Writer, runners []api.Runner, now time.Time) error {
	var text strings.Builder
	columns := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "RUNNER\tHOST\tSLOTS\tRUNNING\tLAST SEEN\tKEY\tSTATE")
	for _, r := range runners {
		key := r.AgeRecipient
		if key == "" {
			key = "-"
		}
		fmt.Fprintf(columns, "%s\t%s\t%d\t%d\t%s ago\t%s\t%s\n", plain(r.Runner), plain(r.Host), r.Slots, len(r.Running),
			max(0, now.Sub(r.LastSeen)).Round(time.Second), key, r.State)
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	lines := strings.SplitAfter(text.String(), "\n")
	if telemetry.IsTerminal(w) {
		// The last column, since a coloured cell would be counted too wide.
		for i, r := range runners {
			lines[i+1] = strings.TrimSuffix(lines[i+1], r.State+"\n") + "\033[" + stateColours[r.State] + "m" + r.State + "\033[0m\n"
		}
	}
	_, err := io.WriteString(w, strings.Join(lines, ""))
	return err
}

var stateColours = map[string]string{
	api.RunnerReady: "32", api.RunnerCordoned: "33", api.RunnerStopping: "33", api.RunnerStopped: "2", api.RunnerSilent: "31",
}

// plain keeps what somebody else wrote from being anything but text of one cell.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
