package clickhouse

import (
	"math"
	"strings"
	"testing"
	"time"

	"verbatim.dev/events"
)

// The tests that need an engine are in services/embedded/storetest.

func TestCheckVersion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		major, minor uint64
		ok           bool
	}{{26, 3, true}, {26, 4, true}, {27, 1, true}, {26, 7, true}, {26, 2, false}, {23, 12, false}, {0, 0, false}} {
		err := checkVersion(c.major, c.minor)
		if (err == nil) != c.ok {
			t.Errorf("%d.%d: %v", c.major, c.minor, err)
		}
		if err != nil && !strings.Contains(err.Error(), "26.3 or newer") {
			t.Errorf("%d.%d: the sentence does not say what is needed: %v", c.major, c.minor, err)
		}
	}
}

// The bound made of a time lies below every id made at that millisecond and above every earlier one.
func TestFirstID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 25, 12, 0, 0, 999_999, time.UTC)
	id := events.FirstExecutionID(at)
	if made, err := events.ParseExecutionID(id); err != nil || !made.Equal(at.Truncate(time.Millisecond)) {
		t.Fatalf("%s: %v, %v", id, made, err)
	}
	now := time.Now()
	made, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	if made < events.FirstExecutionID(now.Add(-time.Minute)) || made > events.FirstExecutionID(now.Add(time.Minute)) {
		t.Fatalf("%s is not between its neighbours", made)
	}
	if got := events.FirstExecutionID(time.Time{}); !strings.HasPrefix(got, "00000000-0000-7") {
		t.Fatalf("of no time: %s", got)
	}
}

func TestColumnsOfRecord(t *testing.T) {
	t.Parallel()
	if len(listColumns) != len(recordColumns)-4 || len(rowColumns) != len(recordColumns)-2 {
		t.Fatalf("%d columns, of a row %d, of a list %d", len(recordColumns), len(rowColumns), len(listColumns))
	}
	for _, name := range recordColumns {
		if name == "" {
			t.Fatal("a field of the record has no column")
		}
	}
	if n := len((&eventBatch{}).columns()); n != len(eventColumns) {
		t.Fatalf("%d values for %d columns of events", n, len(eventColumns))
	}
}

func TestCutOfChunk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to uint64
		want     string
		offset   uint64
	}{
		{0, math.MaxUint64, "abcd", 10},
		{10, 14, "abcd", 10},
		{11, 13, "bc", 11},
		{13, math.MaxUint64, "d", 13},
		{0, 11, "a", 10},
		{14, 20, "", 10},
		{0, 10, "", 10},
	} {
		chunk := Chunk{Offset: 10, Data: []byte("abcd")}
		if chunk.cut(c.from, c.to); string(chunk.Data) != c.want || chunk.Offset != c.offset {
			t.Errorf("[%d, %d): %q at %d, want %q at %d", c.from, c.to, chunk.Data, chunk.Offset, c.want, c.offset)
		}
	}
}
