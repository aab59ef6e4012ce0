package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Retention says for how many days, from the day in which an execution's id was made, something is kept. 0 is for ever, nil
// leaves it as it is.
type Retention struct {
	RowsDays, EventsDays *uint
}

const maxDays = 36500

// Validate reports everything that is wrong.
func (r Retention) Validate() error {
	var errs []error
	for name, days := range map[string]*uint{"rows": r.RowsDays, "events": r.EventsDays} {
		if days != nil && *days > maxDays {
			errs = append(errs, fmt.Errorf("%s are to be kept for %d days, the limit is %d; 0 is for ever", name, *days, maxDays))
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
	var definition string
	err := s.conn.QueryRow(ctx, "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", table)).Scan(&definition)
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
