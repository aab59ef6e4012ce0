package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/replay"
)

// databaseFlags are clickhouseFlags of a user command: the default is the database of the local stack.
type databaseFlags struct {
	ClickHouse string `name:"clickhouse" env:"VERBATIM_CLICKHOUSE" placeholder:"DSN" help:"ClickHouse as a DSN of clickhouse-go. Default: the one that \"verbatim up\" runs on this machine."`
}

func (f databaseFlags) open(ctx context.Context) (*clickhouse.Store, error) {
	dsn := f.ClickHouse
	if dsn == "" {
		e, err := readEndpoints(defaultDataDir())
		if err != nil {
			return nil, usageError{errors.New("no ClickHouse is known: say one with --clickhouse DSN, or start \"verbatim up\"")}
		}
		dsn = "http://" + e.ClickHouse + "/default"
	}
	store, err := clickhouse.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if err := store.CheckSchema(ctx); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// scopeFlags narrow the facts.
type scopeFlags struct {
	Execution string `placeholder:"ID" help:"Only this execution's facts."`
	Since     string `placeholder:"T" help:"Only facts that the broker took since: a duration like 36h (ago), or a time (RFC 3339)."`
	Until     string `placeholder:"T|SEQUENCE" help:"Only facts that the broker took before: a duration (ago) or a time; with --execution also a number: the last sequence."`
}

func (f scopeFlags) filter(now time.Time) (replay.Filter, error) {
	filter := replay.Filter{Execution: f.Execution}
	var errs []error
	instant := func(flag, text string) time.Time {
		if text == "" {
			return time.Time{}
		}
		if d, err := time.ParseDuration(text); err == nil {
			return now.Add(-d).UTC()
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s %q is neither a duration like 1h30m nor a time like 2026-11-25T12:00:00Z", flag, text))
		}
		return t.UTC()
	}
	filter.Since = instant("since", f.Since)
	if n, err := strconv.ParseUint(f.Until, 10, 64); err == nil {
		filter.UntilSequence = n
	} else {
		filter.Until = instant("until", f.Until)
	}
	return filter, errors.Join(append(errs, filter.Validate())...)
}

type replayCommand struct {
	brokerFlags
	databaseFlags
	scopeFlags
	From    string `required:"" placeholder:"kafka|archive|FILE" help:"Where the facts come from: the log (kafka), the table events (archive), or a file that \"verbatim export\" wrote."`
	Into    string `default:"executions_replay" placeholder:"TABLE" help:"Table the rows are rebuilt in, beside executions. Default: executions_replay."`
	Diff    bool   `help:"Compare the rebuilt rows with the live ones; exit with 1 when they differ."`
	Swap    bool   `help:"Make the rebuilt table the live one; the old rows are in TABLE then. Only without a narrower scope."`
	Restart bool   `help:"Begin anew where an unfinished replay could go on."`
	JSON    bool   `name:"json" help:"Print the result, and with --diff every difference, as JSON, one object a line."`
}

// Help is printed by kong below the flags.
func (replayCommand) Help() string {
	return `Rebuilds rows from facts in a table beside the live one, which is not touched. Interrupted, the same command goes on
where it was. A finished table is made anew by the next replay into it.

  verbatim replay --from archive --diff        is every row what its events say?
  verbatim replay --from kafka --execution ID --until 5 --into before
  verbatim replay --from archive --swap        put rebuilt rows in place`
}

// Validate is called by kong.
func (c *replayCommand) Validate() error {
	filter, err := c.filter(time.Now())
	if err == nil && c.Swap && filter != (replay.Filter{}) {
		err = errors.New("--swap would drop what the scope leaves out: use it without --execution, --since and --until")
	}
	if err == nil && c.Swap && c.From != "archive" && c.From != "kafka" {
		err = errors.New("--swap goes with --from archive or kafka: a file may hold a part only")
	}
	return err
}

// Run is called by kong.
func (c *replayCommand) Run(ctx context.Context, s *session) (err error) {
	filter, err := c.filter(time.Now())
	if err != nil {
		return usageError{err}
	}
	logger, err := s.logger()
	if err != nil {
		return err
	}
	store, err := c.databaseFlags.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	into, err := store.Shadow(c.Into)
	if err != nil {
		return usageError{fmt.Errorf("--into: %w", err)}
	}
	source, err := c.source(s, store, filter)
	if err != nil {
		return err
	}
	bar := newProgress(s.stderr, "replaying", "")
	result, err := replay.Run(ctx, replay.Config{
		Source: source, Filter: filter, Store: store, Into: into, Restart: c.Restart, Logger: logger,
		Progress: func(p replay.Progress) { bar.unit = p.Unit; bar.set(p.Done, p.Total) },
	})
	bar.done()
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted: the same command goes on from here")
		}
		return err
	}
	return c.report(ctx, s.stdout, store, into, result)
}

func (c *replayCommand) source(s *session, store *clickhouse.Store, f replay.Filter) (replay.Source, error) {
	switch c.From {
	case "archive":
		return replay.Archive(store, f), nil
	case "kafka":
		config, err := c.brokerFlags.open(s)
		return replay.Log(config, f), err
	}
	if _, err := os.Stat(c.From); err != nil {
		return nil, usageError{fmt.Errorf("--from is kafka, archive or a file: %w", err)}
	}
	return replay.File(c.From), nil
}

// report says what came out, compares and swaps.
func (c *replayCommand) report(ctx context.Context, out io.Writer, store *clickhouse.Store, into *clickhouse.Shadow, result replay.Result) error {
	rebuilt, live, err := into.Count(ctx)
	if err != nil {
		return err
	}
	partial := result.Partial || c.From != "archive" && c.From != "kafka"
	differences := 0
	if c.Diff {
		if err := settle(ctx, into); err != nil {
			return err
		}
		for d, err := range into.Differences(ctx, partial) {
			if err != nil {
				return err
			}
			differences++
			if err := c.writeDifference(out, d); err != nil {
				return err
			}
		}
	}
	refolded := 0
	if c.Swap {
		if refolded, err = replay.Swap(ctx, store, into); err != nil {
			return err
		}
	}
	if c.JSON {
		summary := map[string]any{"table": into.Name(), "facts": result.Facts, "executions": rebuilt, "live_executions": live, "resumed": result.Resumed, "partial": partial, "swapped": c.Swap}
		if c.Diff {
			summary["differences"] = differences
		}
		err = writeJSON(out, summary)
	} else {
		fmt.Fprintf(out, "%d facts of %d executions folded into %s; executions has %d\n", result.Facts, rebuilt, into.Name(), live)
		if c.Diff {
			fmt.Fprintf(out, "%d differences\n", differences)
		}
		if c.Swap {
			fmt.Fprintf(out, "swapped: the old rows are in %s; %d executions that went on meanwhile were brought up to date\n", into.Name(), refolded)
		}
	}
	if err == nil && differences > 0 {
		return exitCode(exitFailure)
	}
	return err
}

// settleTime is how long a projector may be behind the log before that is a difference.
const settleTime = 5 * time.Second

// settle waits a moment for live rows that know less than the rebuilt ones: the projector may be on its way.
func settle(ctx context.Context, into *clickhouse.Shadow) error {
	for deadline := time.Now().Add(settleTime); ; {
		newer, err := into.Newer(ctx)
		if err != nil || len(newer) == 0 || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *replayCommand) writeDifference(out io.Writer, d clickhouse.Difference) error {
	if c.JSON {
		return writeJSON(out, map[string]any{"execution_id": d.ExecutionID, "columns": d.Columns, "live": d.Live, "rebuilt": d.Rebuilt})
	}
	switch {
	case d.Live == nil:
		fmt.Fprintf(out, "%s has no live row\n", d.ExecutionID)
	case d.Rebuilt == nil:
		fmt.Fprintf(out, "%s was not rebuilt: its facts are not there\n", d.ExecutionID)
	default:
		fmt.Fprintln(out, d.ExecutionID)
		for _, name := range d.Columns {
			fmt.Fprintf(out, "    %s: live %s, rebuilt %s\n", name, value(replay.Value(*d.Live, name)), value(replay.Value(*d.Rebuilt, name)))
		}
	}
	return nil
}

type exportCommand struct {
	brokerFlags
	databaseFlags
	scopeFlags
	From   string `enum:"archive,kafka" default:"archive" help:"Where the facts come from: archive or kafka."`
	Output string `short:"o" default:"-" placeholder:"FILE" help:"A name that ends in .parquet gives Parquet, any other one CloudEvents in JSON, one a line; - is standard output."`
	JSON   bool   `name:"json" help:"Print how many facts were written as JSON."`
}

// Help is printed by kong below the flags.
func (exportCommand) Help() string {
	return `Writes facts to a file that "verbatim replay --from FILE" reads, here or elsewhere.

  verbatim export --execution ID -o one.ndjson
  verbatim export --since 24h -o day.parquet`
}

// Validate is called by kong.
func (c *exportCommand) Validate() error {
	_, err := c.filter(time.Now())
	return err
}

// Run is called by kong.
func (c *exportCommand) Run(ctx context.Context, s *session) (err error) {
	filter, err := c.filter(time.Now())
	if err != nil {
		return usageError{err}
	}
	source, closing, err := c.source(ctx, s, filter)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closing()) }()
	total, unit, err := source.Total(ctx, nil)
	if err != nil {
		return err
	}
	out, finish, err := c.open(s)
	if err != nil {
		return err
	}
	bar := newProgress(s.stderr, "exporting", unit)
	written := 0
	w := replay.NewWriter(out, c.Output)
	for f, err := range source.Facts(ctx, nil) {
		if err == nil && !filter.Takes(f) {
			continue
		}
		if err == nil {
			err = w.Write(f)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("export: %w", err), finish(false))
		}
		if written++; written%1000 == 0 {
			_, done := source.Position()
			bar.set(done, total)
		}
	}
	bar.done()
	if err := errors.Join(w.Close(), finish(true)); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if c.JSON {
		text, err := json.Marshal(map[string]any{"facts": written, "file": c.Output})
		if err != nil {
			return err
		}
		fmt.Fprintln(s.stderr, string(text))
		return nil
	}
	fmt.Fprintf(s.stderr, "%d facts written\n", written)
	return nil
}

func (c *exportCommand) source(ctx context.Context, s *session, f replay.Filter) (replay.Source, func() error, error) {
	if c.From == "kafka" {
		config, err := c.brokerFlags.open(s)
		return replay.Log(config, f), func() error { return nil }, err
	}
	store, err := c.databaseFlags.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	return replay.Archive(store, f), store.Close, nil
}

// open opens the output. A file gets its name when it is whole, so nobody reads a half of one.
func (c *exportCommand) open(s *session) (io.Writer, func(whole bool) error, error) {
	if c.Output == "-" {
		return s.stdout, func(bool) error { return nil }, nil
	}
	file, err := os.OpenFile(c.Output+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--output: %w", err)}
	}
	return file, func(whole bool) error {
		err := errors.Join(file.Sync(), file.Close())
		if err == nil && whole {
			return os.Rename(c.Output+".part", c.Output)
		}
		return errors.Join(err, os.Remove(c.Output+".part"))
	}, nil
}
