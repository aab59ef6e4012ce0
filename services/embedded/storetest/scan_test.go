package storetest

import (
	"testing"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// Reading an archive page by page must not look at everything behind a page: of n executions that would cost n². This test does not run
// beside others, since it counts what the engine reads.
func TestAPageOfTheArchiveReadsAPage(t *testing.T) {
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	must(t, s.Migrate(t.Context()))
	const archived = 600_000
	exec(t, dsn, `INSERT INTO events (created_day, execution_id, attempt, source, sequence, id, type, received_at, topic, kafka_offset, earliest)
SELECT '2024-11-25', concat('019366e0-', leftPad(lower(hex(0x7c00 + intDiv(number, 300000))), 4, '0'), '-7000-8000-', leftPad(toString(number), 12, '0')), 1, 'r', 1, toString(number),
	'x', toDateTime64('2024-11-25 12:00:00', 9, 'UTC'), 'verbatim.executions', number, number
FROM numbers(600000)`)
	db := database(t, dsn)
	read := func() (rows uint64) {
		must(t, db.QueryRowContext(t.Context(), "SELECT sum(value) FROM system.events WHERE event = 'SelectedRows'").Scan(&rows))
		return rows
	}
	before := read()
	for e, err := range s.Facts(t.Context(), clickhouse.Range{}) {
		must(t, err)
		if e.Offset != 0 {
			t.Errorf("the first fact has offset %d", e.Offset)
		}
		break
	}
	if n := read() - before; n > archived/2 {
		t.Errorf("%d of %d rows were read for one page of 5000", n, archived)
	}
}
