package clickhouse

import (
	"strings"
	"time"

	"verbatim.dev/events"
)

// final makes FINAL cheap: a row's versions are all in one partition.
const final = " SETTINGS do_not_merge_across_partitions_select_final = 1"

// list joins column names; they are constants of this package.
func list(names []string) string { return strings.Join(names, ", ") }

// dayOf is the partition of an execution.
func dayOf(executionID string) (time.Time, error) {
	made, err := events.ParseExecutionID(executionID)
	if err != nil {
		return time.Time{}, err
	}
	return made.UTC().Truncate(24 * time.Hour), nil
}

func date(t time.Time) string { return t.Format(time.DateOnly) }
