package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/services/client"
)

// longestWait is the most that a gateway waits for what is not stored yet.
const longestWait = time.Minute

func (f serverFlags) client(s *session) (*client.Client, error) { return f.waiting(s, 0) }

func (f readFlags) client(s *session) (*client.Client, error) {
	if f.ReadWait < 0 || f.ReadWait > longestWait {
		return nil, usageError{fmt.Errorf("--read-wait is %s, it must be between 0s and %s", f.ReadWait, longestWait)}
	}
	return f.waiting(s, f.ReadWait)
}

// waiting returns a client whose reads wait so long for what is not stored yet; 0: as long as the gateway finds right.
func (f serverFlags) waiting(s *session, wait time.Duration) (*client.Client, error) {
	c, err := client.New(f.url(), client.Options{
		Token: f.Token, Wait: wait, UserAgent: "verbatim/" + version(),
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
