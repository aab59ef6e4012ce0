package clickhouse

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/pressly/goose/v3"
	"github.com/sethvargo/go-retry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// schemaTable is where goose notes what was applied.
const schemaTable = "schema_versions"

// ErrSchema says that the tables are not those this binary works with.
var ErrSchema = errors.New("unfitting schema")

// migrating keeps this process from racing with itself, which goose's log would show as noise.
var migrating sync.Mutex

// Migrate brings the tables to this binary's version. Several services may do it at once: ClickHouse has no
// lock to hold, so every statement can run twice, and a step that another one disturbed is tried
// again. It refuses a schema that is newer than the binary.
func (s *Store) Migrate(ctx context.Context) error {
	migrating.Lock()
	defer migrating.Unlock()
	backoff := retry.WithMaxRetries(5, retry.WithJitterPercent(50, retry.NewExponential(100*time.Millisecond)))
	err := retry.Do(ctx, backoff, func(ctx context.Context) error {
		// A provider makes the version table once, also when that failed: a new try needs a new one.
		provider, target, err := s.provider()
		if err != nil {
			return err
		}
		if err := s.checkNotNewer(ctx, target); err != nil {
			if errors.Is(err, ErrSchema) {
				return err
			}
			return retry.RetryableError(err)
		}
		if err := s.checkEngines(ctx); err != nil {
			if errors.Is(err, ErrSchema) {
				return err
			}
			return retry.RetryableError(err)
		}
		if err := s.makeVersions(ctx); err != nil {
			return retry.RetryableError(err)
		}
		if _, err := provider.Up(ctx); err != nil {
			return retry.RetryableError(fmt.Errorf("apply migrations: %w", err))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migrate ClickHouse: %w", err)
	}
	s.mu.Lock()
	clear(s.columns)
	s.mu.Unlock()
	return nil
}

// CheckSchema says whether the tables have this binary's version. It changes nothing.
func (s *Store) CheckSchema(ctx context.Context) error {
	_, target, err := s.provider()
	if err != nil {
		return err
	}
	if err := s.checkNotNewer(ctx, target); err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	if err := s.checkEngines(ctx); err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	current, err := s.schemaVersion(ctx)
	if err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	if current < target {
		return fmt.Errorf("check schema: %w: the tables have version %d, this binary needs %d: run the migrations first", ErrSchema, current, target)
	}
	return nil
}

func (s *Store) checkNotNewer(ctx context.Context, target int64) error {
	current, err := s.schemaVersion(ctx)
	if err != nil {
		return err
	}
	if current > target {
		return fmt.Errorf("%w: the tables have version %d, this binary knows %d: use a newer binary", ErrSchema, current, target)
	}
	return nil
}

// schemaVersion is the highest version applied, 0 when there is nothing yet.
func (s *Store) schemaVersion(ctx context.Context) (int64, error) {
	var tables uint64
	err := s.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", schemaTable)).Scan(&tables)
	if err != nil || tables == 0 {
		return 0, err
	}
	var version int64
	if err := s.conn.QueryRow(ctx, "SELECT max(version_id) FROM "+schemaTable+" WHERE is_applied").Scan(&version); err != nil {
		return 0, fmt.Errorf("ask for the schema version: %w", err)
	}
	return version, nil
}

func (s *Store) provider() (*goose.Provider, int64, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, 0, fmt.Errorf("open migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectClickHouse, s.db, clusterFS{files, s.cluster},
		goose.WithTableName(schemaTable), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, 0, fmt.Errorf("read migrations: %w", err)
	}
	target := int64(0)
	for _, source := range p.ListSources() {
		target = max(target, source.Version)
	}
	return p, target, nil
}
