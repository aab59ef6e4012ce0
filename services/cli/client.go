package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"verbatim.dev/events"
	"verbatim.dev/services/client"
)

func (f serverFlags) client(s *session) (*client.Client, error) {
	c, err := client.New(f.url(), client.Options{
		Token: f.Token, UserAgent: "verbatim/" + version(),
		// https://opentelemetry.io/docs/specs/otel/context/env-carriers/
		Traceparent:   os.Getenv("TRACEPARENT"),
		OnInterrupted: func(err error) { fmt.Fprintf(s.stderr, "verbatim: following stands still, trying again: %v\n", err) },
	})
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// executionArg is an execution's id on the command line.
type executionArg struct {
	ID string `arg:"" name:"id" help:"The execution's id."`
}

// Validate is called by kong.
func (a executionArg) Validate() error {
	_, err := events.ParseExecutionID(a.ID)
	return err
}

// explain turns the client's answer for an execution that is not there into a sentence.
func explain(err error, id string) error {
	if client.NotFound(err) {
		return fmt.Errorf("there is no execution %s: \"verbatim list\" shows those that are", id)
	}
	return err
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// warnStale says on the error stream that an answer may be behind.
func (s *session) warnStale(stale string) {
	if stale != "" {
		fmt.Fprintf(s.stderr, "verbatim: this may lack the newest events: the %s is behind\n", stale)
	}
}
