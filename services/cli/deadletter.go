package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/deadletter"
)

type deadletterCommand struct {
	List    deadletterList    `cmd:"" help:"List what could not be handled."`
	Show    deadletterShow    `cmd:"" help:"Show one dead letter: its origin, reason, headers and value."`
	Redrive deadletterRedrive `cmd:"" help:"Send dead letters back to the topic they came from, unchanged."`
}

// brokerFlags are kafkaFlags of a user command: the default is the broker of the local stack.
type brokerFlags struct {
	kafkaFlags
}

func (f brokerFlags) open(s *session) (kafka.Config, error) {
	if len(f.Kafka) == 0 {
		e, err := readEndpoints(defaultDataDir())
		if err != nil {
			return kafka.Config{}, usageError{errors.New("no broker is known: say one with --kafka HOST:PORT, or start \"verbatim up\"")}
		}
		f.Kafka = []string{e.Kafka}
	}
	logger, err := s.logger()
	if err != nil {
		return kafka.Config{}, err
	}
	c, err := f.config(logger)
	if err != nil {
		return kafka.Config{}, usageError{err}
	}
	return c, nil
}

// letterJSON is a dead letter as JSON; bytes are base64.
type letterJSON struct {
	ID        string       `json:"id"`
	Topic     string       `json:"topic"`
	Partition int          `json:"partition"`
	Offset    int64        `json:"offset"`
	Time      *time.Time   `json:"time"`
	Group     string       `json:"group"`
	Reason    string       `json:"reason"`
	Key       []byte       `json:"key"`
	Headers   []headerJSON `json:"headers"`
	Value     []byte       `json:"value"`
	LeftOut   int64        `json:"left_out_bytes,omitempty"`
}

type headerJSON struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

func toJSON(l deadletter.Letter) letterJSON {
	j := letterJSON{ID: l.ID.String(), Topic: l.Topic, Partition: l.Partition, Offset: l.Offset, Group: l.Group, Reason: l.Reason, Key: l.Key, Value: l.Value, Headers: []headerJSON{}, LeftOut: l.LeftOut}
	if !l.Time.IsZero() {
		j.Time = &l.Time
	}
	for _, h := range l.Headers {
		j.Headers = append(j.Headers, headerJSON{h.Key, h.Value})
	}
	return j
}

type deadletterList struct {
	brokerFlags
	Topic string `placeholder:"TOPIC" help:"Only those that came from this topic."`
	JSON  bool   `name:"json" help:"Print one JSON object a line; keys, header values and values are base64."`
}

// Run is called by kong.
func (c *deadletterList) Run(ctx context.Context, s *session) error {
	config, err := c.open(s)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(table, "ID\tTIME\tFROM\tGIVEN UP BY\tBYTES\tREASON")
	}
	for l, err := range deadletter.All(ctx, config) {
		if err != nil {
			return err
		}
		switch {
		case c.Topic != "" && l.Topic != c.Topic:
		case c.JSON:
			if err := writeJSON(s.stdout, toJSON(l)); err != nil {
				return err
			}
		default:
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", l.ID, shortTime(&l.Time), origin(l), l.Group, len(l.Value), cut(l.Reason, 100))
		}
	}
	return table.Flush()
}

func origin(l deadletter.Letter) string {
	if l.Topic == "" {
		return "-"
	}
	return fmt.Sprintf("%s/%d/%d", l.Topic, l.Partition, l.Offset)
}

type deadletterShow struct {
	brokerFlags
	ID   string `arg:"" name:"id" help:"PARTITION/OFFSET, as list shows."`
	JSON bool   `name:"json" help:"Print it as one JSON object; key, header values and value are base64."`
	Raw  bool   `help:"Write only the value, byte for byte."`
}

// Run is called by kong.
func (c *deadletterShow) Run(ctx context.Context, s *session) error {
	id, err := deadletter.ParseID(c.ID)
	if err != nil {
		return usageError{err}
	}
	config, err := c.open(s)
	if err != nil {
		return err
	}
	l, err := deadletter.Get(ctx, config, id)
	switch {
	case err != nil:
		return err
	case c.Raw:
		_, err = s.stdout.Write(l.Value)
		return err
	case c.JSON:
		return writeJSON(s.stdout, toJSON(l))
	}
	return showLetter(s.stdout, l)
}

func showLetter(w io.Writer, l deadletter.Letter) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "dead letter\t%s\nfrom\t%s\ngiven up by\t%s\ngiven up at\t%s\nreason\t%s\nkey\t%s\n",
		l.ID, origin(l), l.Group, shortTime(&l.Time), l.Reason, printable(l.Key))
	for _, h := range l.Headers {
		fmt.Fprintf(table, "header %s\t%s\n", printable([]byte(h.Key)), printable(h.Value))
	}
	if l.LeftOut > 0 {
		fmt.Fprintf(table, "left out\t%d bytes: too large to be kept\n", l.LeftOut)
	}
	fmt.Fprintf(table, "value\t%d bytes: %s\n", len(l.Value), printable(l.Value))
	return table.Flush()
}

// printable shows bytes from a stranger on a terminal.
func printable(b []byte) string {
	const limit = 400
	if b == nil {
		return "none"
	}
	if len(b) > limit {
		for limit := limit; limit > 0; limit-- {
			if utf8.RuneStart(b[limit]) {
				return fmt.Sprintf("%q…", b[:limit])
			}
		}
	}
	return fmt.Sprintf("%q", b)
}

type deadletterRedrive struct {
	brokerFlags
	IDs    []string `arg:"" optional:"" name:"id" help:"PARTITION/OFFSET, as list shows."`
	All    bool     `help:"Send all of them back."`
	Topic  string   `placeholder:"TOPIC" help:"With --all: only those that came from this topic."`
	DryRun bool     `help:"Only say what would be sent."`
	JSON   bool     `name:"json" help:"Print the outcome as JSON."`
}

// Run is called by kong.
func (c *deadletterRedrive) Run(ctx context.Context, s *session) error {
	if c.All == (len(c.IDs) > 0) {
		return usageError{errors.New("say which dead letters to send back, or --all")}
	}
	if c.Topic != "" && !c.All {
		return usageError{errors.New("--topic goes with --all")}
	}
	config, err := c.open(s)
	if err != nil {
		return err
	}
	// Every id is looked up before anything is sent: a wrong one sends nothing.
	for _, text := range c.IDs {
		if _, err := c.letter(ctx, config, text); err != nil {
			return err
		}
	}
	ids := []string{}
	err = withPublisher(config, func(p *kafka.Publisher) error {
		for l, err := range c.letters(ctx, config) {
			if err != nil {
				return err
			}
			if c.All && l.LeftOut > 0 {
				fmt.Fprintf(s.stderr, "%s\tis not whole, and stays\n", l.ID)
				continue
			}
			if !c.DryRun {
				if err := deadletter.Redrive(ctx, p, l); err != nil {
					return err
				}
			}
			if ids = append(ids, l.ID.String()); !c.JSON {
				fmt.Fprintf(s.stdout, "%s\tto %s\n", l.ID, l.Topic)
			}
		}
		return nil
	})
	if c.JSON {
		err = errors.Join(err, writeJSON(s.stdout, map[string]any{"redriven": ids, "dry_run": c.DryRun}))
	}
	return err
}

func (c *deadletterRedrive) letter(ctx context.Context, config kafka.Config, text string) (deadletter.Letter, error) {
	id, err := deadletter.ParseID(text)
	if err != nil {
		return deadletter.Letter{}, usageError{err}
	}
	return deadletter.Get(ctx, config, id)
}

// letters yields what to send back, one at a time: a dead letter may be as large as a record can be.
func (c *deadletterRedrive) letters(ctx context.Context, config kafka.Config) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		if c.All {
			for l, err := range deadletter.All(ctx, config) {
				if err == nil && c.Topic != "" && l.Topic != c.Topic {
					continue
				}
				if !yield(l, err) {
					return
				}
			}
			return
		}
		for _, text := range c.IDs {
			if l, err := c.letter(ctx, config, text); !yield(l, err) {
				return
			}
		}
	}
}

func withPublisher(config kafka.Config, do func(*kafka.Publisher) error) (err error) {
	p, err := kafka.NewPublisher(config, kafka.PublisherOptions{MaxMessageBytes: events.MaxRecordBytes, AllowNoKey: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return do(p)
}
