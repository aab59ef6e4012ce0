package cli

import (
	"context"
	"fmt"
	"io"
)

type queryCommand struct {
	serverFlags
	Format string `enum:"table,csv,json,parquet" default:"table" help:"Format of the result: table, csv, json (an object a line) or parquet."`
	JSON   bool   `name:"json" help:"The same as --format json."`
	SQL    string `arg:"" name:"sql" help:"One statement that reads: SELECT, WITH, SHOW, DESCRIBE, EXPLAIN or EXISTS."`
}

// Help is printed by kong below the flags.
func (queryCommand) Help() string {
	return `The tables are executions (one row per execution; read it with FINAL) and events (the archive).

  verbatim query "SELECT status, count() FROM executions FINAL GROUP BY status"
  verbatim query "DESCRIBE executions"`
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
	result, err := client.Query(ctx, c.SQL, format)
	if err != nil {
		return err
	}
	defer result.Close()
	if _, err := io.Copy(s.stdout, result); err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	return nil
}
