package clickhouse_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

// Tests of statements that run beside each other, and of those that are given up.

func TestCancel(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE target (a UInt64) ENGINE = MergeTree ORDER BY a")
	for name, run := range map[string]func(ctx context.Context) error{
		"aggregate": func(ctx context.Context) error {
			var n uint64
			return conn.QueryRow(ctx, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000) SETTINGS log_comment = 'running aggregate'").Scan(&n)
		},
		"insert": func(ctx context.Context) error {
			return conn.Exec(ctx, "INSERT INTO target SELECT sipHash64(number) FROM numbers(1000000000000) WHERE sipHash64(number) < 5 SETTINGS log_comment = 'running insert'")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() { failed <- run(ctx) }()
			eventually(t, "the query runs", func() bool { return runningQueries(t, conn, name) > 0 })
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled query ended with %v", err)
			}
			eventually(t, "the engine gives the query up", func() bool { return runningQueries(t, conn, name) == 0 })
		})
	}
}

func runningQueries(t testing.TB, conn ch.Conn, what string) uint64 {
	return value[uint64](t, conn, "SELECT count() FROM system.processes WHERE query LIKE ? AND query NOT LIKE '%system.processes%'", "%running "+what+"%")
}

// eventually polls a condition of another process or thread.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatal("never happened: ", what)
		}
		wait, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
		<-wait.Done()
		stop()
	}
}

// Readers and writers at once: every acknowledged row is seen by the next query, and no answer mixes with another.
func TestReadersAndWriters(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	conn := openDSN(t, dsn)
	do(t, conn, "CREATE TABLE events (writer UInt8, seq UInt64, payload String) ENGINE = MergeTree ORDER BY (writer, seq)")
	const writers, readers, batches, perBatch = 4, 16, 12, 500
	var group sync.WaitGroup
	var acknowledged [writers]struct {
		sync.Mutex
		rows uint64
	}
	done := make(chan struct{})
	for w := range writers {
		group.Go(func() {
			for b := range batches {
				batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO events")
				if err != nil {
					t.Error(err)
					return
				}
				for i := range perBatch {
					if err := batch.Append(uint8(w), uint64(b*perBatch+i), strings.Repeat("p", 100)); err != nil {
						t.Error(err)
						return
					}
				}
				if err := batch.Send(); err != nil {
					t.Error(err)
					return
				}
				acknowledged[w].Lock()
				acknowledged[w].rows += perBatch
				acknowledged[w].Unlock()
			}
		})
	}
	var reading sync.WaitGroup
	for r := range readers {
		reading.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-done:
					return
				default:
				}
				w := (r + round) % writers
				acknowledged[w].Lock()
				least := acknowledged[w].rows
				acknowledged[w].Unlock()
				var count, highest, mine uint64
				err := conn.QueryRow(t.Context(), "SELECT count(), max(seq), toUInt64(?) FROM events WHERE writer = ?", r, w).Scan(&count, &highest, &mine)
				if err != nil || count < least || count > 0 && highest != count-1 || mine != uint64(r) {
					t.Errorf("writer %d: %d rows up to %d, %d were acknowledged; answer of reader %d to reader %d; %v", w, count, highest, least, mine, r, err)
					return
				}
			}
		})
	}
	group.Wait()
	close(done)
	reading.Wait()
	if n := value[uint64](t, conn, "SELECT count() FROM events"); n != writers*batches*perBatch {
		t.Errorf("%d rows, want %d", n, writers*batches*perBatch)
	}
}

// A long SELECT does not keep inserts waiting.
func TestLongSelectDoesNotBlockInserts(t *testing.T) {
	t.Parallel()
	conn := open(t)
	do(t, conn, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		var n uint64
		failed <- conn.QueryRow(ctx, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000) SETTINGS log_comment = 'running beside', max_threads = 1").Scan(&n)
	}()
	eventually(t, "the long query runs", func() bool { return runningQueries(t, conn, "beside") > 0 })
	for i := range 10 {
		do(t, conn, "INSERT INTO t VALUES (?)", i)
	}
	if n := value[uint64](t, conn, "SELECT count() FROM t"); n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
	select {
	case err := <-failed:
		t.Errorf("the long query ended before the inserts: %v", err)
	default:
	}
	cancel()
	<-failed
}
