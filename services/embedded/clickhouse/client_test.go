package clickhouse_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/google/uuid"
)

// Tests of the embedded engine through clickhouse-go, as the services use it.

func TestServerVersionAndPing(t *testing.T) {
	t.Parallel()
	conn := open(t)
	version, err := conn.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.Name != "verbatim embedded" || version.Version.Major < 26 || version.Revision != 0 {
		t.Errorf("version %+v", version)
	}
	if err := conn.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// compressions are all that clickhouse-go's HTTP client offers.
var compressions = map[string]ch.CompressionMethod{
	"none": ch.CompressionNone, "lz4": ch.CompressionLZ4, "lz4hc": ch.CompressionLZ4HC, "zstd": ch.CompressionZSTD,
	"gzip": ch.CompressionGZIP, "deflate": ch.CompressionDeflate, "br": ch.CompressionBrotli,
}

// allTypes has one column of each type that the project's tables use.
type allTypes struct {
	ID       uint64                     `ch:"id"`
	Bytes    string                     `ch:"bytes"`
	At       time.Time                  `ch:"at"`
	Maybe    *int32                     `ch:"maybe"`
	Word     string                     `ch:"word"`
	MaybeLow *string                    `ch:"maybe_low"`
	Ranges   [][]any                    `ch:"ranges"`
	Labels   map[string]string          `ch:"labels"`
	Nested   map[string][]uint64        `ch:"nested"`
	Flag     bool                       `ch:"flag"`
	State    string                     `ch:"state"`
	UUID     uuid.UUID                  `ch:"uuid"`
	Digest   string                     `ch:"digest"`
	Float    float64                    `ch:"float"`
	Lists    []string                   `ch:"lists"`
	Deep     map[string]map[string]bool `ch:"deep"`
}

const allTypesTable = `CREATE TABLE types (
	id UInt64, bytes String, at DateTime64(9, 'UTC'), maybe Nullable(Int32), word LowCardinality(String),
	maybe_low LowCardinality(Nullable(String)), ranges Array(Tuple(UInt64, UInt64)), labels Map(String, String),
	nested Map(LowCardinality(String), Array(UInt64)), flag Bool, state Enum8('queued' = 1, 'done' = 2), uuid UUID,
	digest FixedString(32), float Float64, lists Array(String), deep Map(String, Map(String, Bool))
) ENGINE = MergeTree ORDER BY id`

func sampleTypes() []allTypes {
	seven, low := int32(-7), "low"
	raw := make([]byte, 256)
	for i := range raw {
		raw[i] = byte(i)
	}
	return []allTypes{
		{
			ID: 1<<64 - 1, Bytes: string(raw), At: time.Date(2026, 11, 25, 1, 2, 3, 123456789, time.UTC), Maybe: &seven,
			Word: "w", MaybeLow: &low, Ranges: [][]any{{uint64(0), uint64(5)}, {uint64(9), uint64(1 << 63)}},
			Labels: map[string]string{"a": "1", "": "\x00"}, Nested: map[string][]uint64{"x": {1, 2}, "y": {}},
			Flag: true, State: "done", UUID: uuid.MustParse("019ac2c4-7b5e-7c3e-9d55-4a1f6e0f3c11"),
			Digest: strings.Repeat("\xfe\x00", 16), Float: -0.1, Lists: []string{"", "ü", "\xff"},
			Deep: map[string]map[string]bool{"k": {"t": true, "f": false}},
		},
		{
			Bytes: "", At: time.Unix(0, 0).UTC(), Ranges: [][]any{}, Labels: map[string]string{},
			Nested: map[string][]uint64{}, State: "queued", Digest: strings.Repeat("\x00", 32), Lists: []string{},
			Deep: map[string]map[string]bool{},
		},
	}
}

func TestTypesSurvive(t *testing.T) {
	t.Parallel()
	for name, method := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open(t, func(o *ch.Options) { o.Compression = &ch.Compression{Method: method, Level: 3} })
			do(t, conn, allTypesTable)
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO types")
			if err != nil {
				t.Fatal(err)
			}
			want := sampleTypes()
			for i := range want {
				if err := batch.AppendStruct(&want[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			var got []allTypes
			if err := conn.Select(t.Context(), &got, "SELECT * FROM types ORDER BY id DESC"); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if !reflect.DeepEqual(got[i], want[i]) {
					t.Errorf("row %d:\n got %+v\nwant %+v", i, got[i], want[i])
				}
			}
			err = conn.Exec(t.Context(), "SELECT nonsense FROM nowhere")
			if code := codeOf(t, err); code != 60 {
				t.Errorf("error of a compressed connection: %v", err)
			}
			_, err = conn.Query(t.Context(), "SELECT nonsense FROM nowhere")
			if code := codeOf(t, err); code != 60 {
				t.Errorf("error of a compressed query: %v", err)
			}
		})
	}
}

func TestBatchOfManyRows(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE many (id UInt64, text String) ENGINE = MergeTree ORDER BY id")
	const rows = 200_000
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO many (id, text)")
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := batch.Append(uint64(i), fmt.Sprintf("row %d\x00\xff", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	if n := value[uint64](t, conn, "SELECT count() FROM many WHERE text = concat('row ', toString(id), unhex('00FF'))"); n != rows {
		t.Errorf("%d of %d rows arrived", n, rows)
	}
	result, err := conn.Query(t.Context(), "SELECT id, text FROM many ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	var id, want uint64
	var text string
	for ; result.Next(); want++ {
		if err := result.Scan(&id, &text); err != nil {
			t.Fatal(err)
		}
		if id != want {
			t.Fatalf("row %d comes where %d should", id, want)
		}
	}
	if err := result.Err(); err != nil || want != rows {
		t.Errorf("%d of %d rows came back: %v", want, rows, err)
	}
}

func TestOneLargeValue(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE large (id UInt64, data String) ENGINE = MergeTree ORDER BY id")
	large := bytes.Repeat([]byte("0123456789abcde\x00"), 64<<20/16)
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO large")
	if err != nil {
		t.Fatal(err)
	}
	if err := batch.Append(uint64(1), large); err != nil {
		t.Fatal(err)
	}
	if err := batch.Append(uint64(2), []byte("after")); err != nil {
		t.Fatal(err)
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	var back string
	if err := conn.QueryRow(t.Context(), "SELECT data FROM large WHERE id = 1").Scan(&back); err != nil {
		t.Fatal(err)
	}
	if back != string(large) {
		t.Errorf("a value of %d bytes came back as %d other bytes", len(large), len(back))
	}
	if n := value[uint64](t, conn, "SELECT count() FROM large"); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	conn := open(t)
	ctx := ch.Context(t.Context(), ch.WithParameters(ch.Parameters{"n": "7", "s": `it's \\ "q"`, "table": "t"}))
	var n int64
	var s string
	if err := conn.QueryRow(ctx, "SELECT {n:Int64}, {s:String}").Scan(&n, &s); err != nil {
		t.Fatal(err)
	}
	if n != 7 || s != `it's \ "q"` {
		t.Errorf("got %d and %q", n, s)
	}
	do(t, conn, "CREATE TABLE t (a Int64) ENGINE = Memory")
	if err := conn.Exec(ctx, "INSERT INTO {table:Identifier} VALUES ({n:Int64})"); err != nil {
		t.Error(err)
	}
	if err := conn.Exec(ctx, "INSERT INTO {table:Identifier} SELECT {n:Int64} + 1"); err != nil {
		t.Error(err)
	}
	if sum := value[int64](t, conn, "SELECT sum(a) FROM t"); sum != 15 {
		t.Errorf("sum %d, want 15", sum)
	}
	if got := value[string](t, conn, "SELECT ?", "bound ' here"); got != "bound ' here" {
		t.Errorf("client-side binding gave %q", got)
	}
}

func TestExternalTable(t *testing.T) {
	t.Parallel()
	conn := open(t)
	table, err := ext.NewTable("wanted", ext.Column("id", "UInt64"), ext.Column("name", "String"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := table.Append(uint64(i), fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
	}
	ctx := ch.Context(t.Context(), ch.WithExternalTable(table))
	var count uint64
	if err := conn.QueryRow(ctx, "SELECT count() FROM wanted WHERE id % 2 = 0").Scan(&count); err != nil {
		t.Fatal(err)
	}
	if count != 50 {
		t.Errorf("count %d, want 50", count)
	}
	if code := codeOf(t, conn.Exec(t.Context(), "SELECT * FROM wanted")); code != 60 {
		t.Errorf("the table of an earlier request is still there, code %d", code)
	}
}

// codeOf is the ClickHouse code that clickhouse-go found in an error.
func codeOf(t testing.TB, err error) int {
	t.Helper()
	var e *ch.Exception
	if !errors.As(err, &e) {
		t.Fatalf("no ClickHouse exception: %v", err)
	}
	return int(e.Code)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE numbers_only (a UInt8) ENGINE = MergeTree ORDER BY a")
	for sql, want := range map[string]struct {
		code, status int
		name         string
	}{
		"SELEC 1": {62, 400, "SYNTAX_ERROR"}, "": {62, 400, "SYNTAX_ERROR"}, "SELECT 1; SELECT 2": {62, 400, "SYNTAX_ERROR"},
		"SELECT 1; SELEC": {62, 400, "SYNTAX_ERROR"}, "SELECT * FROM nowhere": {60, 404, "UNKNOWN_TABLE"},
		"INSERT INTO nowhere VALUES (1)":          {60, 404, "UNKNOWN_TABLE"},
		"SELECT nothing":                          {47, 404, "UNKNOWN_IDENTIFIER"},
		"SELECT nofunction()":                     {46, 404, "UNKNOWN_FUNCTION"},
		"SELECT * FROM nobase.t":                  {81, 404, "UNKNOWN_DATABASE"},
		"SELECT 1 FORMAT NoFormat":                {73, 404, "UNKNOWN_FORMAT"},
		"SELECT toUInt8('x')":                     {6, 400, "CANNOT_PARSE_TEXT"},
		"SELECT 1 = [1]":                          {43, 500, "ILLEGAL_TYPE_OF_ARGUMENT"},
		"INSERT INTO numbers_only VALUES ('x')":   {6, 400, "CANNOT_PARSE_TEXT"},
		"SELECT CAST([1], 'Tuple(UInt8, UInt8)')": {53, 400, "TYPE_MISMATCH"},
		"SELECT groupArray(number) FROM numbers(1000000) SETTINGS max_memory_usage = 1000000":                                 {241, 500, "MEMORY_LIMIT_EXCEEDED"},
		"SELECT count() FROM numbers(100) WHERE NOT sleepEachRow(0.05) SETTINGS max_block_size = 1, max_execution_time = 0.3": {159, 408, "TIMEOUT_EXCEEDED"},
		"SELECT 1 SETTINGS no_such_setting = 1":               {115, 404, "UNKNOWN_SETTING"},
		"CREATE TABLE numbers_only (a UInt8) ENGINE = Memory": {57, 500, "TABLE_ALREADY_EXISTS"},
	} {
		t.Run(sql, func(t *testing.T) {
			t.Parallel()
			err := conn.Exec(t.Context(), sql)
			if code := codeOf(t, err); code != want.code {
				t.Fatalf("code %d, want %d: %v", code, want.code, err)
			}
			var h *ch.HTTPError
			if !errors.As(err, &h) || h.StatusCode != want.status {
				t.Errorf("want HTTP status %d: %v", want.status, err)
			}
			var e *ch.Exception
			if errors.As(err, &e); !strings.Contains(e.Message, "("+want.name+") (version ") || strings.Contains(e.Message, "Code:") {
				t.Errorf("message %q, want the name %s", e.Message, want.name)
			}
		})
	}
}

// A failure after the first part of the answer has left must reach the client as that failure.
func TestErrorAfterTheAnswerBegan(t *testing.T) {
	t.Parallel()
	for name, method := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := open(t, func(o *ch.Options) { o.Compression = &ch.Compression{Method: method, Level: 3} })
			rows, err := conn.Query(t.Context(), "SELECT number, throwIf(number = 300000) FROM numbers(400000) SETTINGS max_threads = 1")
			if err == nil {
				defer rows.Close()
				for rows.Next() {
				}
				err = rows.Err()
			}
			if err == nil {
				t.Fatal("the client took a part of the answer for the whole")
			}
			if method != ch.CompressionGZIP && method != ch.CompressionDeflate && method != ch.CompressionBrotli {
				if code := codeOf(t, err); code != 395 {
					t.Errorf("code %d, want 395: %v", code, err)
				}
			}
		})
	}
}

// goose and hand-written migrations.
func TestSchemaChanges(t *testing.T) {
	t.Parallel()
	conn := open(t)
	for _, sql := range []string{
		"CREATE TABLE IF NOT EXISTS goose_db_version (version_id Int64, is_applied UInt8, date Date DEFAULT now(), tstamp DateTime DEFAULT now()) ENGINE = MergeTree() ORDER BY date",
		"INSERT INTO goose_db_version (version_id, is_applied) VALUES (1, 1)",
		"CREATE TABLE rows (id String, state LowCardinality(String), version UInt64, at DateTime64(9, 'UTC'), INDEX at_index at TYPE minmax) ENGINE = ReplacingMergeTree(version) PARTITION BY toYYYYMM(at) ORDER BY id SETTINGS index_granularity = 1024",
		"ALTER TABLE rows ADD COLUMN exit_code Nullable(Int32) AFTER state",
		"ALTER TABLE rows MODIFY COLUMN state String, COMMENT COLUMN id 'execution id'",
		"ALTER TABLE rows RENAME COLUMN exit_code TO code",
		"CREATE VIEW latest AS SELECT * FROM rows FINAL",
		"CREATE MATERIALIZED VIEW totals ENGINE = SummingMergeTree ORDER BY state AS SELECT state, count() AS n FROM rows GROUP BY state",
		"INSERT INTO rows VALUES ('a', 'queued', NULL, 1, '2026-01-01 00:00:00'), ('b', 'queued', NULL, 1, '2026-01-01 00:00:00')",
		"INSERT INTO rows VALUES ('a', 'done', 3, 9, '2026-01-01 00:00:00')",
		"INSERT INTO rows VALUES ('a', 'running', NULL, 5, '2026-01-01 00:00:00')",
	} {
		do(t, conn, sql)
	}
	if state := value[string](t, conn, "SELECT state FROM rows FINAL WHERE id = 'a'"); state != "done" {
		t.Errorf("FINAL gives state %q, want done", state)
	}
	if n := value[uint64](t, conn, "SELECT count() FROM latest"); n != 2 {
		t.Errorf("the view has %d rows, want 2", n)
	}
	if n := value[uint64](t, conn, "SELECT sum(n) FROM totals"); n != 4 {
		t.Errorf("the materialized view counted %d, want 4", n)
	}
	do(t, conn, "OPTIMIZE TABLE rows FINAL")
	if n := value[uint64](t, conn, "SELECT count() FROM rows"); n != 2 {
		t.Errorf("%d rows after OPTIMIZE FINAL, want 2", n)
	}
	do(t, conn, "ALTER TABLE rows DELETE WHERE id = 'b' SETTINGS mutations_sync = 1")
	do(t, conn, "ALTER TABLE rows UPDATE state = 'x' WHERE 1 SETTINGS mutations_sync = 1")
	if state := value[string](t, conn, "SELECT arrayStringConcat(groupArray(id || state)) FROM rows FINAL"); state != "ax" {
		t.Errorf("after the mutations: %q, want ax", state)
	}
	do(t, conn, "DELETE FROM rows WHERE id = 'a'")
	do(t, conn, "TRUNCATE TABLE goose_db_version")
	do(t, conn, "RENAME TABLE rows TO old_rows")
	do(t, conn, "DROP TABLE old_rows SYNC")
}

func TestTimeToLive(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE ages (id UInt64, at DateTime) ENGINE = MergeTree ORDER BY id TTL at + INTERVAL 1 DAY")
	do(t, conn, "INSERT INTO ages SELECT number, if(number < 10, now() - INTERVAL 9 DAY, now()) FROM numbers(30)")
	do(t, conn, "OPTIMIZE TABLE ages FINAL")
	if n := value[uint64](t, conn, "SELECT count() FROM ages"); n != 20 {
		t.Errorf("%d rows are left, want 20", n)
	}
}

func TestDeduplicationToken(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE once (id UInt64) ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100")
	insert := func(token string, ids ...uint64) {
		t.Helper()
		ctx := ch.Context(t.Context(), ch.WithSettings(ch.Settings{"insert_deduplication_token": token}))
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO once")
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if err := batch.Append(id); err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			t.Fatal(err)
		}
	}
	insert("topic:0:1-2", 1, 2)
	insert("topic:0:1-2", 1, 2)
	insert("topic:0:3-4", 1, 2)
	if n := value[uint64](t, conn, "SELECT count() FROM once"); n != 4 {
		t.Errorf("%d rows, want 4: the second insert repeats a token, the third does not", n)
	}
}

// Settings of one request are gone with it, also from a kept-alive connection.
func TestSettingsDoNotLeak(t *testing.T) {
	t.Parallel()
	conn := open(t, func(o *ch.Options) { o.MaxOpenConns = 1 })
	before := value[string](t, conn, "SELECT toString(getSetting('max_threads')) || toString(getSetting('max_result_rows'))")
	ctx := ch.Context(t.Context(), ch.WithSettings(ch.Settings{"max_threads": 7, "max_result_rows": 5}))
	var inside string
	if err := conn.QueryRow(ctx, "SELECT toString(getSetting('max_threads')) || toString(getSetting('max_result_rows'))").Scan(&inside); err != nil {
		t.Fatal(err)
	}
	do(t, conn, "SET max_threads = 9")
	do(t, conn, "USE system")
	after := value[string](t, conn, "SELECT toString(getSetting('max_threads')) || toString(getSetting('max_result_rows'))")
	if inside != "75" || before != after {
		t.Errorf("before %s, inside %s, after %s", before, inside, after)
	}
	if database := value[string](t, conn, "SELECT currentDatabase()"); !strings.HasPrefix(database, "test_") {
		t.Errorf("USE leaked: the database is %s", database)
	}
	bad := ch.Context(t.Context(), ch.WithSettings(ch.Settings{"no_such_thing": 1}))
	if code := codeOf(t, conn.Exec(bad, "SELECT 1")); code != 115 {
		t.Errorf("code %d, want 115", code)
	}
	if a := call(t, http.MethodGet, nil, nil, "query=SELECT 1", "max_threads=many"); a.status != http.StatusBadRequest {
		t.Errorf("a setting of the wrong type: %d %s", a.status, a.body)
	}
}
