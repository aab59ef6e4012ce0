package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"verbatim.dev/events"
	"verbatim.dev/services/internal/telemetry"
)

type searchCommand struct {
	readFlags
	Stream string `enum:"both,stdout,stderr" default:"both" help:"Only in one stream: both, stdout or stderr."`
	Since  string `placeholder:"D" help:"Only in executions requested since: a duration like 90s, 1h, 36h, or a time (RFC 3339)."`
	Limit  int    `default:"100" placeholder:"N" help:"At most so many matches. Default: 100."`
	JSON   bool   `name:"json" help:"Print one JSON object a match."`
	Text   string `arg:"" help:"What to look for: whole words, in this order and with what is between them. Upper and lower case of ASCII letters are the same."`
}

// Help is printed by kong below the flags.
func (searchCommand) Help() string {
	return `Looks through the archived output of all executions with an index of words, the newest execution first. A text that was
written at two times more than 50 ms apart may lie in two events, and is not found over their border.

  verbatim search "connection refused" --since 24h`
}

// Validate is called by kong.
func (c *searchCommand) Validate() error {
	var errs []error
	if !strings.ContainsFunc(c.Text, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
		errs = append(errs, fmt.Errorf("%q has no word to look for", c.Text))
	}
	if c.Limit < 1 || c.Limit > 10_000 {
		errs = append(errs, fmt.Errorf("--limit is %d, it must be from 1 to 10000", c.Limit))
	}
	if _, err := since(c.Since); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// since reads a duration ago or a time; empty is the beginning.
func since(text string) (time.Time, error) {
	if text == "" {
		return time.Unix(0, 0), nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("--since %q is neither a duration like 1h30m nor a time like 2026-11-25T12:00:00Z", text)
	}
	return t, nil
}

// searchSQL finds chunks by the index of words, and in them the lines that have the text. LIMIT BY drops copies of an event.
const searchSQL = `WITH lower({text:String}) AS wanted
SELECT execution_id, attempt, stream, toUInt64(output_offset + found.1 + position(lower(found.2), wanted) - 1) AS offset, time,
	toValidUTF8(substring(found.2, 1, 500)) AS line
FROM (
	SELECT execution_id, attempt, stream, output_offset, time,
		splitByChar('\n', output) AS lines,
		arrayMap((end, line) -> end - length(line) - 1, arrayCumSum(l -> length(l) + 1, lines), lines) AS begins,
		arrayJoin(arrayFilter(l -> position(lower(l.2), wanted) > 0, arrayZip(begins, lines))) AS found
	FROM events
	WHERE hasAllTokens(lower(output), tokens(lower({text:String}), 'splitByNonAlpha'))
		AND ({stream:String} = 'both' OR stream = {stream:String})
		AND created_day >= toDate({since:DateTime('UTC')}) AND execution_id >= {first:String}
	ORDER BY execution_id DESC, attempt, output_offset, stream, found
	LIMIT 1 BY execution_id, attempt, stream, output_offset, found
	LIMIT {limit:UInt32}
)
ORDER BY execution_id DESC, attempt, offset, stream`

// match is one place.
type match struct {
	ExecutionID string      `json:"execution_id"`
	Attempt     uint32      `json:"attempt"`
	Stream      string      `json:"stream"`
	Offset      json.Number `json:"offset"`
	Time        *string     `json:"time"`
	Line        string      `json:"line"`
}

// Run is called by kong.
func (c *searchCommand) Run(ctx context.Context, s *session) error {
	from, err := since(c.Since)
	if err != nil {
		return usageError{err}
	}
	client, err := c.client(s)
	if err != nil {
		return err
	}
	defer client.Close()
	result, err := client.Query(ctx, searchSQL, "JSONEachRow", map[string]string{
		"text": c.Text, "stream": c.Stream, "since": from.UTC().Format(time.DateTime), "first": events.FirstExecutionID(from), "limit": strconv.Itoa(c.Limit),
	})
	if err != nil {
		return err
	}
	defer result.Close()
	if c.JSON {
		_, err := io.Copy(s.stdout, result)
		return err
	}
	return c.print(s, result)
}

func (c *searchCommand) print(s *session, result io.Reader) error {
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	lines := bufio.NewScanner(result)
	lines.Buffer(nil, 1<<20)
	found := 0
	for lines.Scan() {
		var m match
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("read result: %w", err)
		}
		found++
		fmt.Fprintf(table, "%s\t%s:%s\t%s\n", m.ExecutionID, m.Stream, m.Offset, oneLine(m.Line))
	}
	if err := errors.Join(lines.Err(), table.Flush()); err != nil {
		return err
	}
	if found == c.Limit && telemetry.IsTerminal(s.stderr) {
		fmt.Fprintf(s.stderr, "there may be more than %d: see --limit\n", c.Limit)
	}
	if found == 0 {
		return exitCode(exitFailure)
	}
	return nil
}

// oneLine keeps what a process wrote from doing things to the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
