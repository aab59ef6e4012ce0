package clickhouse_test

import (
	"testing"
)

func TestHello(t *testing.T) {
	t.Parallel()
	conn := open(t)
	version, err := conn.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(version)
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200_000 {
		if err := batch.Append(uint64(i), "x\x00\xff"); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	if n := value[uint64](t, conn, "SELECT count() FROM t"); n != 200_000 {
		t.Fatal(n)
	}
}
