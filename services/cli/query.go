package cli

import (
	"context"
	"fmt"
	"io"
)

type queryCommand struct {
	readFlags
	Format string            `enum:"table,csv,json,parquet" default:"table" help:"Format of the result: table, csv, json (an object a line) or parquet."`
	JSON   bool              `name:"json" help:"The same as --format json."`
	Param  map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"Value for {NAME:Type} in the statement. May be given again."`
	SQL    string            `arg:"" name:"sql" help:"One statement that reads: SELECT, WITH, SHOW, DESCRIBE, EXPLAIN or EXISTS."`
}

// Help is printed by kong below the flags.
func (queryCommand) Help() string {
	return `The tables are executions (one row per execution; read it with FINAL) and events (the archive). Views for reports:
current_executions, output_lines, attempts, outcomes_by_hour, failure_reasons, runner_utilisation, incomplete_executions.

  verbatim query "SELECT status, count() FROM executions FINAL GROUP BY status"
  verbatim query "SELECT * FROM failure_reasons WHERE created_day = today() ORDER BY executions DESC"
  verbatim query "DESCRIBE output_lines"`
}

// Run is called by kong.
func (c *queryCommand) Run(ctx context.Context, s *session) error {
	client, err := c.client(s)
	if err != nil {
		return err
	}
	defer client.Close()
	if c.JSON {
		c.Format = "json"
	}
	format := map[string]string{"table": "PrettyCompactMonoBlock", "csv": "CSVWithNames", "json": "JSONEachRow", "parquet": "Parquet"}[c.Format]
	result, err := client.Query(ctx, c.SQL, format, c.Param)
	if err != nil {
		return err
	}
	defer result.Close()
	if _, err := io.Copy(s.stdout, result); err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	return nil
}
