package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"verbatim.dev/services/gateway/api"
)

type eventsCommand struct {
	executionArg
	readFlags
	JSON bool `name:"json" help:"Print one JSON object a line, with the payloads."`
}

// Run is called by kong.
func (c *eventsCommand) Run(ctx context.Context, s *session) error {
	client, err := c.client(s)
	if err != nil {
		return err
	}
	defer client.Close()
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(table, "TIME\tATTEMPT\tSEQUENCE\tEVENT\tSAYS")
	}
	for fact, err := range client.Events(ctx, c.ID) {
		if err != nil {
			return explain(err, c.ID)
		}
		if c.JSON {
			if err := writeJSON(s.stdout, fact); err != nil {
				return err
			}
			continue
		}
		at := fact.ReceivedAt
		if fact.Time != nil {
			at = *fact.Time
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", at.Local().Format("15:04:05.000"), fact.Attempt, fact.Sequence, fact.Name, summary(fact))
	}
	return table.Flush()
}

// summary is what fits a line of an event's payload.
func summary(f api.Fact) string {
	var members map[string]any
	if json.Unmarshal(f.Data, &members) != nil {
		return fmt.Sprintf("%d bytes of a type that is not known here", len(f.DataBase64))
	}
	text := func(name string) string {
		switch v := members[name].(type) {
		case string:
			return v
		case float64:
			return fmt.Sprint(v)
		default:
			return ""
		}
	}
	switch f.Name {
	case "OutputChunk":
		payload, _ := f.Payload() // It was decoded by the server.
		chunk, ok := payload.(interface{ GetData() []byte })
		if !ok {
			return ""
		}
		return fmt.Sprintf("%s at %s, %d bytes: %s", strings.ToLower(strings.TrimPrefix(text("stream"), "STREAM_")), text("offset"), len(chunk.GetData()), quote(chunk.GetData()))
	case "ExecutionRequested":
		return "by " + text("requestedBy")
	case "Prepared":
		argv, _ := members["argv"].([]any)
		return cut(fmt.Sprintf("%q", argv), 60)
	case "ProcessStarted":
		return fmt.Sprintf("pid %s on %s, runner %s", text("pid"), text("host"), text("runner"))
	case "ProcessExited":
		if signal, ok := members["signal"].(map[string]any); ok {
			return fmt.Sprintf("killed by signal %v", signal["name"])
		}
		return "exit code " + text("exitCode")
	case "TerminationStarted":
		return strings.ToLower(strings.TrimPrefix(text("cause"), "TERMINATION_CAUSE_"))
	case "RunnerLost":
		return fmt.Sprintf("runner %s, %s since %s", text("runner"), strings.ToLower(strings.TrimPrefix(text("cause"), "LOSS_CAUSE_")), text("silentSince"))
	case "RunnerReturned":
		return "runner " + text("runner")
	case "RetryScheduled":
		return fmt.Sprintf("attempt %s follows at %s, because %s", text("nextAttempt"), text("notBefore"), strings.ToLower(strings.TrimPrefix(text("because"), "RETRY_ON_")))
	case "CancelRequested":
		return strings.TrimSpace("by " + text("requestedBy") + " " + text("reason"))
	case "OutputSealed":
		var parts []string
		streams, _ := members["streams"].([]any)
		for _, v := range streams {
			if seal, ok := v.(map[string]any); ok {
				parts = append(parts, fmt.Sprintf("%s %v bytes", strings.ToLower(strings.TrimPrefix(fmt.Sprint(seal["stream"]), "STREAM_")), seal["capturedBytes"]))
			}
		}
		return strings.Join(parts, ", ")
	case "OutputRecorded":
		var parts []string
		artifacts, _ := members["artifacts"].([]any)
		for _, v := range artifacts {
			if a, ok := v.(map[string]any); ok {
				part := fmt.Sprint(a["uri"])
				if a["digestCheck"] == "DIGEST_CHECK_MISMATCH" {
					part += " (digest differs)"
				}
				parts = append(parts, part)
			}
		}
		return strings.Join(parts, ", ")
	default:
		if m := text("message"); m != "" {
			return cut(m, 80)
		}
		return cut(text("cause"), 80)
	}
}

// quote shows bytes on one line of a terminal, whatever they are.
func quote(b []byte) string {
	const limit = 40
	if len(b) > limit {
		return fmt.Sprintf("%q…", b[:limit])
	}
	return fmt.Sprintf("%q", b)
}

func cut(s string, limit int) string {
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}

// shortTime is a time for people, in their own time zone.
func shortTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
