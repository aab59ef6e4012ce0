package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/replay"
)

type debugCommand struct {
	executionArg
	readFlags
	At      int    `placeholder:"N" help:"Do not ask: print the row after the N-th event, and what it changed."`
	Changed string `placeholder:"COLUMN" help:"Do not ask: print every event that changed a column of the row, with the old and the new value."`
	JSON    bool   `name:"json" help:"Do not ask: print one JSON object per event with what it changed, or with --at that row."`
}

const debugHelp = `next (or Enter), prev, first, last, goto N
find COLUMN   go on to the next event that changed a column; find again for the one after; back COLUMN the other way
row           the whole row here
event         the whole event here
columns       the names of the columns
quit`

// Help is printed by kong below the flags.
func (debugCommand) Help() string {
	return "Steps through an execution's events and shows what each did to the row. Commands:\n\n" + debugHelp
}

// Validate is called by kong.
func (c *debugCommand) Validate() error {
	if c.Changed != "" && !slices.Contains(replay.Columns(), c.Changed) {
		return fmt.Errorf("--changed %q is no column of a row: %s", c.Changed, strings.Join(replay.Columns(), ", "))
	}
	if c.At < 0 {
		return fmt.Errorf("--at is %d: events are counted from 1", c.At)
	}
	return nil
}

// Run is called by kong.
func (c *debugCommand) Run(ctx context.Context, s *session) error {
	d, err := c.load(ctx, s)
	if err != nil {
		return err
	}
	switch {
	case c.At > d.steps.Len():
		return usageError{fmt.Errorf("--at %d: there are %d events", c.At, d.steps.Len())}
	case c.At > 0 && c.JSON:
		return writeJSON(s.stdout, d.steps.Row(c.At))
	case c.At > 0:
		d.at = c.At
		d.show()
		fmt.Fprintln(s.stdout)
		return writeRow(s.stdout, d.steps.Row(c.At))
	case c.JSON, c.Changed != "":
		return c.list(s, d)
	}
	return d.ask(s.stdin)
}

// load gets the events of the log of facts, in their order.
func (c *debugCommand) load(ctx context.Context, s *session) (*debugger, error) {
	client, err := c.client(s)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	d := &debugger{out: s.stdout, steps: replay.NewSteps(c.ID)}
	progress := newProgress(s.stderr, "reading events", "events")
	defer progress.done()
	for f, err := range client.Events(ctx, c.ID) {
		if err != nil {
			return nil, explain(err, c.ID)
		}
		if f.Topic != events.TopicExecutions {
			continue
		}
		e, err := eventOf(f)
		if err != nil {
			return nil, err
		}
		if err := d.steps.Add(e, f.ReceivedAt); err != nil {
			return nil, fmt.Errorf("%w: \"verbatim replay --execution %s --until SEQUENCE\" rebuilds its row up to an event", err, c.ID)
		}
		d.facts = append(d.facts, f)
		progress.set(uint64(d.steps.Len()), 0)
	}
	if d.steps.Len() == 0 {
		return nil, fmt.Errorf("execution %s has no events", c.ID)
	}
	return d, nil
}

func eventOf(f api.Fact) (events.Event, error) {
	data, err := f.Payload()
	if err != nil {
		return events.Event{}, err
	}
	e := events.Event{
		ID: f.ID, Source: f.Source, Type: f.Type, Subject: f.Subject, Attempt: f.Attempt, Sequence: f.Sequence,
		ContentType: f.ContentType, Payload: f.DataBase64, Data: data,
	}
	if f.Time != nil {
		e.Time = *f.Time
	}
	if data != nil {
		if e.Payload, err = proto.Marshal(data); err != nil {
			return e, fmt.Errorf("event %s: %w", f.ID, err)
		}
	}
	return e, nil
}

// stepJSON is an event and what it changed.
type stepJSON struct {
	Step    int               `json:"step"`
	Event   api.Fact          `json:"event"`
	Changed map[string]fromTo `json:"changed"`
}

type fromTo struct {
	From any `json:"from"`
	To   any `json:"to"`
}

// list prints every step, or those that changed a column.
func (c *debugCommand) list(s *session, d *debugger) error {
	before := d.steps.Row(0)
	for step := 1; step <= d.steps.Len(); step++ {
		after := d.steps.Row(step)
		changed := map[string]fromTo{}
		for _, name := range d.steps.Changed(step) {
			if c.Changed == "" || c.Changed == name {
				changed[name] = fromTo{replay.Value(before, name), replay.Value(after, name)}
			}
		}
		before = after
		switch {
		case c.Changed != "" && len(changed) == 0:
		case c.JSON:
			if err := writeJSON(s.stdout, stepJSON{step, d.facts[step-1], changed}); err != nil {
				return err
			}
		default:
			x := changed[c.Changed]
			fmt.Fprintf(s.stdout, "%d  %s  %s\n    %s: %s → %s\n", step, timeOf(d.facts[step-1]), d.facts[step-1].Name, c.Changed, value(x.From), value(x.To))
		}
	}
	return nil
}

// debugger is where somebody stands among the steps.
type debugger struct {
	out   io.Writer
	steps *replay.Steps
	facts []api.Fact
	at    int
}

// ask reads commands until there are no more.
func (d *debugger) ask(in io.Reader) error {
	prompt := telemetry.IsTerminal(d.out)
	d.at = 1
	d.show()
	lines := bufio.NewScanner(in)
	for {
		if prompt {
			fmt.Fprintf(d.out, "(%d/%d) ", d.at, d.steps.Len())
		}
		if !lines.Scan() {
			return lines.Err()
		}
		switch err := d.obey(strings.Fields(lines.Text())); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			fmt.Fprintln(d.out, err)
		}
	}
}

func (d *debugger) obey(words []string) error {
	word, argument := "next", ""
	if len(words) > 0 {
		word = words[0]
	}
	if len(words) > 1 {
		argument = words[1]
	}
	switch word {
	case "next", "n":
		return d.move(d.at + 1)
	case "prev", "p":
		return d.move(d.at - 1)
	case "first":
		return d.move(1)
	case "last":
		return d.move(d.steps.Len())
	case "goto", "g":
		n, err := strconv.Atoi(argument)
		if err != nil {
			return fmt.Errorf("goto takes a number from 1 to %d", d.steps.Len())
		}
		return d.move(n)
	case "find", "f":
		return d.find(argument, 1)
	case "back", "b":
		return d.find(argument, -1)
	case "row", "r":
		return writeRow(d.out, d.steps.Row(d.at))
	case "event", "e":
		return writeJSON(d.out, d.facts[d.at-1])
	case "columns":
		_, err := fmt.Fprintln(d.out, strings.Join(replay.Columns(), " "))
		return err
	case "quit", "q":
		return io.EOF
	default:
		_, err := fmt.Fprintln(d.out, debugHelp)
		return err
	}
}

func (d *debugger) move(to int) error {
	switch {
	case to < 1:
		return errors.New("this is the first event")
	case to > d.steps.Len():
		return fmt.Errorf("there are %d events", d.steps.Len())
	}
	d.at = to
	d.show()
	return nil
}

// find goes to the next event in a direction that changed a column.
func (d *debugger) find(column string, direction int) error {
	if !slices.Contains(replay.Columns(), column) {
		return fmt.Errorf("%q is no column of a row; \"columns\" lists them", column)
	}
	for step := d.at + direction; step >= 1 && step <= d.steps.Len(); step += direction {
		if slices.Contains(d.steps.Changed(step), column) {
			return d.move(step)
		}
	}
	return fmt.Errorf("no other event this way changed %s", column)
}

// show prints the event here and what it changed.
func (d *debugger) show() {
	f := d.facts[d.at-1]
	fmt.Fprintf(d.out, "event %d of %d  %s  %s  %s %d/%d  %s\n", d.at, d.steps.Len(), timeOf(f), f.Name, f.Source, f.Attempt, f.Sequence, summary(f))
	before, after := d.steps.Row(d.at-1), d.steps.Row(d.at)
	for _, name := range d.steps.Changed(d.at) {
		fmt.Fprintf(d.out, "    %s: %s → %s\n", name, value(replay.Value(before, name)), value(replay.Value(after, name)))
	}
}

func timeOf(f api.Fact) string {
	at := f.ReceivedAt
	if f.Time != nil {
		at = *f.Time
	}
	return at.Local().Format("15:04:05.000")
}

// value shows a column's value on one line.
func value(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if string(text) == "null" {
		return "unknown"
	}
	return cut(string(text), 100)
}
