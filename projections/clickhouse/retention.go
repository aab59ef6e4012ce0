package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Retention says for how many days, from the day in which an execution's id was made, something is kept. 0 is for ever, nil
// leaves it as it is.
type Retention struct {
	RowsDays, EventsDays *uint
}

// MaxDays is the longest retention that is no mistake.
const MaxDays = 36500

// Validate reports everything that is wrong.
func (r Retention) Validate() error {
	var errs []error
	for name, days := range map[string]*uint{"rows": r.RowsDays, "events": r.EventsDays} {
		if days != nil && *days > MaxDays {
			errs = append(errs, fmt.Errorf("%s are to be kept for %d days, the limit is %d; 0 is for ever", name, *days, MaxDays))
		}
	}
	return errors.Join(errs...)
}

// SetRetention makes ClickHouse drop whole partitions, which are days, once they are over. It drops them within hours.
func (s *Store) SetRetention(ctx context.Context, r Retention) error {
	if err := r.Validate(); err != nil {
		return err
	}
	for _, t := range []struct {
		table string
		days  *uint
	}{{"executions", r.RowsDays}, {"events", r.EventsDays}} {
		if t.days == nil {
			continue
		}
		if err := s.setTTL(ctx, t.table, *t.days); err != nil {
			return fmt.Errorf("set retention of %s: %w", t.table, err)
		}
	}
	return nil
}

func (s *Store) setTTL(ctx context.Context, table string, days uint) error {
	definition, err := s.definition(ctx, table)
	if err != nil {
		return err
	}
	if days == 0 {
		if !strings.Contains(definition, " TTL ") {
			return nil
		}
		return s.conn.Exec(ctx, "ALTER TABLE "+table+s.cluster.on()+" REMOVE TTL")
	}
	if err := s.conn.Exec(ctx, "ALTER TABLE "+table+s.cluster.on()+" MODIFY SETTING ttl_only_drop_parts = 1"); err != nil {
		return err
	}
	// The number is one: DDL takes no parameters.
	return s.conn.Exec(ctx, fmt.Sprintf("ALTER TABLE %s MODIFY TTL created_day + INTERVAL %d DAY", table+s.cluster.on(), days+1))
}

func (s *Store) definition(ctx context.Context, table string) (definition string, err error) {
	err = s.conn.QueryRow(ctx, "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", table)).Scan(&definition)
	return definition, err
}

var ttl = regexp.MustCompile(` TTL created_day \+ toIntervalDay\((\d+)\)`)

// Retention is what SetRetention has set; 0 is for ever.
func (s *Store) Retention(ctx context.Context) (r Retention, err error) {
	for table, into := range map[string]**uint{"executions": &r.RowsDays, "events": &r.EventsDays} {
		definition, err := s.definition(ctx, table)
		if err != nil {
			return r, fmt.Errorf("ask for the retention of %s: %w", table, err)
		}
		days := uint64(0)
		if found := ttl.FindStringSubmatch(definition); found != nil {
			if days, err = strconv.ParseUint(found[1], 10, 32); err != nil || days == 0 {
				return r, fmt.Errorf("retention of %s: %s days make no sense", table, found[1])
			}
			days--
		}
		kept := uint(days)
		*into = &kept
	}
	return r, nil
}

// Stored is what there is of one day.
type Stored struct {
	// Day is that in which the executions' ids were made (UTC).
	Day time.Time
	// Count is of executions or of events, copies that are not merged yet among these.
	Count uint64
	// Bytes are those on the server's disk.
	Bytes uint64
}

const storedSQL = `SELECT created_day, %s, any(bytes)
FROM %s
LEFT JOIN (
	SELECT partition, sum(bytes_on_disk) AS bytes
	FROM system.parts
	WHERE database = currentDatabase() AND table = {table:String} AND active
	GROUP BY partition
) AS parts ON toString(created_day) = parts.partition
GROUP BY created_day
ORDER BY created_day`

// StoredRows and StoredEvents say how much there is of each day, the oldest first.
func (s *Store) StoredRows(ctx context.Context) ([]Stored, error) {
	return s.stored(ctx, "executions", "uniqExact(execution_id)")
}

// StoredEvents is StoredRows of the archive.
func (s *Store) StoredEvents(ctx context.Context) ([]Stored, error) {
	return s.stored(ctx, "events", "count()")
}

func (s *Store) stored(ctx context.Context, table, count string) (all []Stored, err error) {
	rows, err := s.conn.Query(ctx, fmt.Sprintf(storedSQL, count, table), clickhouse.Named("table", table))
	if err != nil {
		return nil, fmt.Errorf("ask what is stored in %s: %w", table, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var d Stored
		if err := rows.Scan(&d.Day, &d.Count, &d.Bytes); err != nil {
			return nil, fmt.Errorf("ask what is stored in %s: %w", table, err)
		}
		all = append(all, d)
	}
	return all, rows.Err()
}

// ArtifactsRemoved notes that the files of the executions of a day are removed, or are about to be: from then on no row that is read
// names one. Noting it twice is noting it once.
func (s *Store) ArtifactsRemoved(ctx context.Context, day time.Time) error {
	err := s.conn.Exec(ctx, "INSERT INTO removed_artifacts (created_day, removed_at) SELECT {day:Date}, now64(3)", clickhouse.Named("day", date(day)))
	if err != nil {
		return fmt.Errorf("note that the artifacts of %s are removed: %w", date(day), err)
	}
	return nil
}

// readAs are the expressions that columns are read by: a URI is NULL once the file was removed.
func readAs(columns []string) []string {
	columns = slices.Clone(columns)
	for i, c := range columns {
		if c == "stdout_log" || c == "stderr_log" {
			columns[i] = "if(created_day IN (SELECT created_day FROM removed_artifacts), NULL, " + c + ") AS " + c
		}
	}
	return columns
}
