package clickhouse

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// The oldest server that is taken: the first long-term release with text indexes that are no experiment any more.
const (
	minMajor = 26
	minMinor = 3
)

const (
	maxOpenConns    = 16
	maxIdleConns    = 4
	connMaxLifetime = 10 * time.Minute
)

// ErrNotFound says that there is no row for an execution.
var ErrNotFound = errors.New("execution not found")

// Store is a ClickHouse database with Verbatim's tables. It is safe for concurrent use.
type Store struct {
	conn    driver.Conn
	db      *sql.DB // the same server, for goose
	cluster cluster

	mu      sync.Mutex
	columns map[string][]clickhouse.ColumnNameAndType
}

// Open connects to the database that dsn names (https://clickhouse.com/docs/integrations/go: http://, https:// or
// clickhouse://user:password@host:port/database) and checks that the server is new enough. With ?cluster=NAME the
// server is one of several replicas, see cluster. Errors never hold the password.
func Open(ctx context.Context, dsn string) (*Store, error) {
	dsn, on, err := clusterOf(dsn)
	if err != nil {
		return nil, fmt.Errorf("parse ClickHouse address: %w", err)
	}
	opts, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // the outer error quotes the address with the password
		}
		return nil, fmt.Errorf("parse ClickHouse address: %w", err)
	}
	if opts.Settings == nil {
		opts.Settings = clickhouse.Settings{}
	}
	maps.Copy(opts.Settings, on.settings())
	opts.MaxOpenConns, opts.MaxIdleConns, opts.ConnMaxLifetime = maxOpenConns, maxIdleConns, connMaxLifetime
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	s := &Store{conn: conn, cluster: on, db: clickhouse.OpenDB(opts), columns: map[string][]clickhouse.ColumnNameAndType{}}
	s.db.SetMaxOpenConns(2)
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("reach ClickHouse at %v: %w", opts.Addr, err), s.Close())
	}
	return s, nil
}

func (s *Store) check(ctx context.Context) error {
	if err := s.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	v, err := s.conn.ServerVersion()
	if err != nil {
		return fmt.Errorf("ask for the version: %w", err)
	}
	return checkVersion(v.Version.Major, v.Version.Minor)
}

func checkVersion(major, minor uint64) error {
	if major < minMajor || major == minMajor && minor < minMinor {
		return fmt.Errorf("the server is ClickHouse %d.%d, Verbatim needs %d.%d or newer: upgrade the server", major, minor, minMajor, minMinor)
	}
	return nil
}

// Ping says whether the server answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping ClickHouse: %w", err)
	}
	return nil
}

// Close closes all connections.
func (s *Store) Close() error {
	if err := errors.Join(s.conn.Close(), s.db.Close()); err != nil {
		return fmt.Errorf("close ClickHouse: %w", err)
	}
	return nil
}

// insert returns a batch for the named columns of a table. Over HTTP the driver must know their types; they are
// asked for once.
func (s *Store) insert(ctx context.Context, table string, names []string) (driver.Batch, error) {
	columns, err := s.typesOf(ctx, table, names)
	if err != nil {
		return nil, err
	}
	ctx = clickhouse.Context(ctx,
		clickhouse.WithColumnNamesAndTypes(columns),
		// The day comes from an id that anybody can make up. A batch must not fail because its ids name many days.
		clickhouse.WithSettings(clickhouse.Settings{"max_partitions_per_insert_block": 0}))
	return s.conn.PrepareBatch(ctx, "INSERT INTO "+table+" ("+list(names)+")", driver.WithReleaseConnection())
}

func (s *Store) typesOf(ctx context.Context, table string, names []string) ([]clickhouse.ColumnNameAndType, error) {
	s.mu.Lock()
	cached, ok := s.columns[table]
	s.mu.Unlock()
	if ok {
		return cached, nil
	}
	types, err := s.tableTypes(ctx, table)
	if err != nil {
		return nil, fmt.Errorf("ask for the columns of %s: %w", table, err)
	}
	columns := make([]clickhouse.ColumnNameAndType, len(names))
	for i, name := range names {
		typ, ok := types[name]
		if !ok {
			return nil, fmt.Errorf("table %s has no column %s: %w", table, name, ErrSchema)
		}
		columns[i] = clickhouse.ColumnNameAndType{Name: name, Type: typ}
	}
	s.mu.Lock()
	s.columns[table] = columns
	s.mu.Unlock()
	return columns, nil
}

const columnsSQL = `SELECT name, type
FROM system.columns
WHERE database = currentDatabase() AND table = {table:String}`

func (s *Store) tableTypes(ctx context.Context, table string) (types map[string]string, err error) {
	rows, err := s.conn.Query(ctx, columnsSQL, clickhouse.Named("table", table))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	types = map[string]string{}
	for rows.Next() {
		var name, typ string
		if err := rows.Scan(&name, &typ); err != nil {
			return nil, err
		}
		types[name] = typ
	}
	return types, rows.Err()
}
