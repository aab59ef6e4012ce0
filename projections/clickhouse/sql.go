package clickhouse

import (
	"fmt"
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

// firstID is the smallest execution id that can be made at or after t.
func firstID(t time.Time) string {
	ms := max(0, t.UnixMilli()) & (1<<48 - 1)
	return fmt.Sprintf("%08x-%04x-7000-8000-000000000000", ms>>16, ms&0xffff)
}
