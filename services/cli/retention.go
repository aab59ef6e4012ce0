package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/recorder/files"
)

type retentionCommand struct {
	databaseFlags
	Artifacts     string `env:"VERBATIM_ARTIFACTS" placeholder:"URL" help:"Where artifacts are kept, as for the recorder; none for none. Default: where \"verbatim up\" keeps them on this machine."`
	KeepEvents    *uint  `placeholder:"DAYS" help:"Days that the archive would keep events; 0 is for ever. Default: what was said to \"setup\" or \"up\"."`
	KeepRows      *uint  `placeholder:"DAYS" help:"Days that rows would be kept; 0 is for ever. Default: what was said to \"setup\" or \"up\"."`
	KeepArtifacts uint   `env:"VERBATIM_KEEP_ARTIFACTS" placeholder:"DAYS" help:"Days that artifacts would be kept; 0, the default, is for ever."`
	JSON          bool   `name:"json" help:"Print one JSON object for archive, rows and artifacts each."`
}

// Help is printed by kong below the flags.
func (retentionCommand) Help() string {
	return `A dry run: it reads and removes nothing. What goes are whole days (UTC), and the day of an execution is that of its request. Those who remove
are ClickHouse (--keep-events and --keep-rows of setup and up) and the recorder (--keep-artifacts of recorder and up).`
}

// Validate is called by kong.
func (c *retentionCommand) Validate() error {
	err := clickhouse.Retention{RowsDays: c.KeepRows, EventsDays: c.KeepEvents}.Validate()
	if c.KeepArtifacts > clickhouse.MaxDays {
		err = errors.Join(err, fmt.Errorf("--keep-artifacts is %d days, the limit is %d; 0 is for ever", c.KeepArtifacts, clickhouse.MaxDays))
	}
	return err
}

// extentJSON is how much there is of something.
type extentJSON struct {
	Count uint64 `json:"count"`
	Bytes uint64 `json:"bytes"`
	// Oldest and Newest are days; null when there is nothing.
	Oldest *string `json:"oldest_day"`
	Newest *string `json:"newest_day"`
}

func (e *extentJSON) add(d clickhouse.Stored) {
	day := d.Day.Format(time.DateOnly)
	if e.Oldest == nil {
		e.Oldest = &day
	}
	e.Newest = &day
	e.Count, e.Bytes = e.Count+d.Count, e.Bytes+d.Bytes
}

// retentionJSON is what is said of archive, rows or artifacts.
type retentionJSON struct {
	What string `json:"what"`
	// KeepDays is 0 for ever.
	KeepDays uint       `json:"keep_days"`
	Stored   extentJSON `json:"stored"`
	Goes     extentJSON `json:"goes"`
}

func retained(what string, days uint, stored []clickhouse.Stored, now time.Time) retentionJSON {
	j := retentionJSON{What: what, KeepDays: days}
	for _, d := range stored {
		j.Stored.add(d)
		if days > 0 && files.Over(d.Day, now, days) {
			j.Goes.add(d)
		}
	}
	return j
}

// Run is called by kong.
func (c *retentionCommand) Run(ctx context.Context, s *session) (err error) {
	address, err := c.address()
	if err != nil {
		return err
	}
	store, err := c.databaseFlags.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	set, err := store.Retention(ctx)
	if err != nil {
		return err
	}
	if c.KeepEvents == nil {
		c.KeepEvents = set.EventsDays
	}
	if c.KeepRows == nil {
		c.KeepRows = set.RowsDays
	}
	events, err := store.StoredEvents(ctx)
	if err != nil {
		return err
	}
	rows, err := store.StoredRows(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	all := []retentionJSON{retained("archive", *c.KeepEvents, events, now), retained("rows", *c.KeepRows, rows, now)}
	if address != "" {
		objects, err := storedArtifacts(ctx, address)
		if err != nil {
			return err
		}
		all = append(all, retained("artifacts", c.KeepArtifacts, objects, now))
	}
	return c.print(s, all)
}

// address is that of the store; empty for none.
func (c *retentionCommand) address() (string, error) {
	data := defaultDataDir()
	if _, err := readEndpoints(data); err != nil {
		data = "" // Whatever was kept there is not what runs.
	}
	config, err := artifactFlags{Artifacts: c.Artifacts}.config(data)
	if err != nil {
		return "", usageError{err}
	}
	return config.URL, nil
}

// storedArtifacts counts objects by day. What is not named as artifacts are does not count.
func storedArtifacts(ctx context.Context, address string) (all []clickhouse.Stored, err error) {
	store, err := artifact.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	days, err := store.Days(ctx)
	if err != nil {
		return nil, err
	}
	for _, day := range days {
		d := clickhouse.Stored{Day: day}
		err := store.ListDay(ctx, day, func(o artifact.Object) error {
			d.Count, d.Bytes = d.Count+1, d.Bytes+o.Size
			return nil
		})
		if err != nil {
			return nil, err
		}
		if d.Count > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

func (c *retentionCommand) print(s *session, all []retentionJSON) error {
	if c.JSON {
		for _, j := range all {
			if err := writeJSON(s.stdout, j); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WHAT\tKEPT\tSTORED\tBYTES\tOLDEST\tNEWEST\tWOULD GO\tBYTES\tOLDEST\tNEWEST")
	for _, j := range all {
		kept, unit := "for ever", map[string]string{"archive": "events", "rows": "rows", "artifacts": "objects"}[j.What]
		if j.KeepDays > 0 {
			kept = strconv.FormatUint(uint64(j.KeepDays), 10) + " days"
		}
		fmt.Fprintf(table, "%s\t%s", j.What, kept)
		for _, e := range []extentJSON{j.Stored, j.Goes} {
			fmt.Fprintf(table, "\t%d %s\t%d\t%s\t%s", e.Count, unit, e.Bytes, orDash(e.Oldest), orDash(e.Newest))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
