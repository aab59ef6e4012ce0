package clickhouse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"regexp"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// A cluster is one shard of several replicas, by the name that the servers' configuration gives it. Tables are made on all of them (ON
// CLUSTER) with replicated engines; {shard} and {replica} are the servers' own macros. The zero cluster is one server with plain tables.
//
// What a projector was told is stored has to be there when another one loads it, from whichever replica. So an insert waits for most
// replicas, and before states are loaded the replica that is asked catches up with the others.
type cluster string

// clusterParameter names the cluster in a DSN. It is taken out before the driver sees it, to which it would be a setting.
const clusterParameter = "cluster"

// Names as they stand in a configuration, or the macro that a server has for it.
var clusterName = regexp.MustCompile(`^(\{cluster\}|[A-Za-z0-9_.-]{1,64})$`)

// clusterOf takes the cluster out of a DSN.
func clusterOf(dsn string) (string, cluster, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return dsn, "", nil //nolint:nilerr // The driver has the better word for it.
	}
	parameters := u.Query()
	name := parameters.Get(clusterParameter)
	if !parameters.Has(clusterParameter) {
		return dsn, "", nil
	}
	if !clusterName.MatchString(name) {
		return dsn, "", fmt.Errorf("%q is no name of a cluster: letters, digits, _, . and -, or {cluster}", name)
	}
	parameters.Del(clusterParameter)
	u.RawQuery = parameters.Encode()
	return u.String(), cluster(name), nil
}

// settings of every statement.
func (c cluster) settings() clickhouse.Settings {
	if c == "" {
		return clickhouse.Settings{}
	}
	return clickhouse.Settings{"insert_quorum": "auto"}
}

// on is what stands behind the name of a table in a definition.
func (c cluster) on() string {
	if c == "" {
		return ""
	}
	return " ON CLUSTER '" + string(c) + "'"
}

// The path has the table's UUID and not its name: names change when a rebuilt table is swapped in.
const replicatedAt = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'"

var (
	engine  = regexp.MustCompile(`ENGINE = (\w*MergeTree)(\(([^)]*)\))?`)
	defines = regexp.MustCompile(`(?m)^((?:CREATE TABLE IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE|DROP TABLE IF EXISTS|DROP VIEW IF EXISTS) \w+)`)
)

// rewrite turns the text of definitions for one server into that for the cluster.
func (c cluster) rewrite(sql string) string {
	if c == "" {
		return sql
	}
	sql = engine.ReplaceAllStringFunc(sql, func(e string) string {
		m := engine.FindStringSubmatch(e)
		arguments := replicatedAt
		if own := strings.TrimSpace(m[3]); own != "" {
			arguments += ", " + own
		}
		return "ENGINE = Replicated" + m[1] + "(" + arguments + ")"
	})
	return defines.ReplaceAllString(sql, "${1}"+c.on())
}

// makeVersions makes the table of applied migrations on every replica before goose would make it on one.
func (s *Store) makeVersions(ctx context.Context) error {
	if s.cluster == "" {
		return nil
	}
	err := s.conn.Exec(ctx, s.cluster.rewrite(`CREATE TABLE IF NOT EXISTS `+schemaTable+` (version_id Int64, is_applied UInt8, date Date DEFAULT now(), tstamp DateTime DEFAULT now())
ENGINE = MergeTree
ORDER BY version_id`))
	if err != nil {
		return fmt.Errorf("make table %s: %w", schemaTable, err)
	}
	return nil
}

// checkEngines refuses to work on the tables of one server as on those of a cluster, and the other way round.
func (s *Store) checkEngines(ctx context.Context) error {
	var plain, replicated uint64
	err := s.conn.QueryRow(ctx, `SELECT countIf(engine NOT LIKE 'Replicated%'), countIf(engine LIKE 'Replicated%')
FROM system.tables WHERE database = currentDatabase() AND name IN ('executions', 'events')`).Scan(&plain, &replicated)
	switch {
	case err != nil:
		return fmt.Errorf("ask for the engines of the tables: %w", err)
	case s.cluster != "" && plain > 0:
		return fmt.Errorf("%w: the tables are those of one server, not of cluster %s: take another database, and replay into it", ErrSchema, s.cluster)
	case s.cluster == "" && replicated > 0:
		return fmt.Errorf("%w: the tables are those of a cluster: name it in the address, ?%s=NAME", ErrSchema, clusterParameter)
	}
	return nil
}

// catchUp makes the replica that is asked know what the others know of a table.
func (s *Store) catchUp(ctx context.Context, table string) error {
	if s.cluster == "" {
		return nil
	}
	return s.conn.Exec(ctx, "SYSTEM SYNC REPLICA "+table+" LIGHTWEIGHT")
}

// clusterFS is a folder of migrations, rewritten for a cluster.
type clusterFS struct {
	fs.FS
	cluster cluster
}

// Open implements fs.FS.
func (f clusterFS) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, ".sql") {
		return file, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	return &rewritten{bytes.NewReader([]byte(f.cluster.rewrite(string(text)))), info}, nil
}

// rewritten is a file in memory.
type rewritten struct {
	*bytes.Reader
	info fs.FileInfo
}

func (r *rewritten) Stat() (fs.FileInfo, error) { return sized{r.info, r.Size()}, nil }
func (r *rewritten) Close() error               { return nil }

type sized struct {
	fs.FileInfo
	size int64
}

func (s sized) Size() int64 { return s.size }
