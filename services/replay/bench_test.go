//go:build benchprojector

package replay_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
	embeddedkafka "verbatim.dev/services/embedded/kafka"
	"verbatim.dev/services/internal/telemetry"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/replay"
)

// The benchmark measures the way from the log to the row beside a consumer that only reads, replay of ten times the
// events beside replay of them, and the views over many rows. scripts/bench-projector runs it.
// shape is what the executions of a measurement write.
type shape struct {
	name               string
	executions, chunks int
	chunkBytes         int
}

func shapes() []shape {
	n := number("VERBATIM_BENCH_EXECUTIONS", 2000)
	return []shape{
		{"4 KiB chunks", n, 100, 4096},
		{"small events", n, 100, 64},
		{"long", n / 100, 10_000, 4096}, // One row is written again and again while its execution runs.
	}
}

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// bench is a log and a database, both embedded in this process.
type bench struct {
	t    *testing.T
	base wiring.Base
	dsn  string
}

func newBench(t *testing.T) *bench {
	quiet := slog.New(slog.DiscardHandler)
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Stop(context.Background())) })
	b := &bench{t: t, dsn: clickhousetest.Database(t), base: wiring.Base{
		Kafka: kafka.Config{Brokers: []string{broker.Addr()}, Logger: quiet}, Logger: quiet, Registry: telemetry.NewRegistry(), Checks: &telemetry.Checks{},
	}}
	must(t, wiring.Setup(b.base, b.dsn, clickhouse.Retention{}, nil).Start(t.Context()))
	return b
}

// chunky is an execution that writes; the text is of words, so that it packs like a log and not like zeros.
func (h shape) tell(t *testing.T, n int) []events.Event {
	t.Helper()
	id := fmt.Sprintf("019366e0-%04x-7000-8000-%012x", 0x7c00+n%1000, n)
	var es []events.Event
	add := func(data proto.Message) {
		e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(id, 1, uint64(len(es)+1), begun, data)
		must(t, err)
		es = append(es, e)
	}
	add(&executionv1.ProcessStarted{Pid: 1, Runner: "r"})
	for i := range h.chunks {
		var line strings.Builder
		for line.Len() < h.chunkBytes {
			fmt.Fprintf(&line, "%d worker %d said %x\n", n, i, (n*7919+i*104729+line.Len())*2654435761)
		}
		add(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(i * h.chunkBytes), Data: []byte(line.String()[:h.chunkBytes])})
	}
	add(&executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{}})
	return es
}

// fill writes executions to the log and the archive and returns the number of facts.
func (b *bench) fill(h shape, from, to int, archive bool) int {
	p, err := kafka.NewPublisher(b.base.Kafka, kafka.PublisherOptions{})
	must(b.t, err)
	store, err := clickhouse.Open(b.t.Context(), b.dsn)
	must(b.t, err)
	defer store.Close()
	facts := 0
	var archived []clickhouse.ArchivedEvent
	for n := from; n < to; n++ {
		es := h.tell(b.t, n)
		facts += len(es)
		var msgs []*message.Message
		for i, e := range es {
			m, err := codec.ToMessage(e)
			must(b.t, err)
			msgs = append(msgs, m)
			archived = append(archived, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: int64(n*100_000 + i), ReceivedAt: begun})
		}
		if archive {
			if len(archived) >= 4000 || n == to-1 { // As the recorder does: a part for each execution would be merged for long.
				must(b.t, store.InsertEvents(b.t.Context(), archived))
				archived = archived[:0]
			}
			continue
		}
		archived = archived[:0]
		must(b.t, p.Publish(events.TopicExecutions, msgs...))
	}
	must(b.t, p.Close())
	return facts
}

func TestBenchLogToRow(t *testing.T) {
	fmt.Println("machine     ", machine())
	for _, h := range shapes() {
		t.Run(h.name, func(t *testing.T) {
			b := newBench(t)
			facts := b.fill(h, 0, h.executions, false)
			bare := cost(func() { b.readOnly(facts) })
			before := b.inserted()
			took := cost(func() {
				service := wiring.Projector(b.base, b.dsn, 2000)
				must(t, service.Start(t.Context()))
				b.await(facts)
				must(t, service.Stop(context.Background()))
			})
			rate := func(s spent) string {
				return fmt.Sprintf("%8.0f events/s %6.1f MB/s %5.1f µs of CPU each", float64(facts)/s.wall.Seconds(), float64(facts*h.chunkBytes)/1e6/s.wall.Seconds(), s.cpu.Seconds()*1e6/float64(facts))
			}
			fmt.Printf("log to row   %-12s %s   a consumer that only reads %s   ratio %.2f   rows written per execution %.1f   heap %d MiB\n",
				h.name, rate(took), rate(bare), bare.wall.Seconds()/took.wall.Seconds(), float64(b.inserted()-before)/float64(h.executions), heap())
		})
	}
}

// spent is what something took, of the clock and of all threads of this process: broker and database are in it.
type spent struct{ wall, cpu time.Duration }

func cost(do func()) spent {
	runtime.GC()
	began, before := time.Now(), processorTime()
	do()
	return spent{time.Since(began), processorTime() - before}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inserted is the number of rows written so far, versions of one execution counted each.
func (b *bench) inserted() uint64 {
	options, err := chgo.ParseDSN(b.dsn)
	must(b.t, err)
	db := chgo.OpenDB(options)
	defer db.Close()
	var n uint64
	must(b.t, db.QueryRowContext(b.t.Context(), "SELECT sum(value) FROM system.events WHERE event = 'InsertedRows'").Scan(&n))
	return n
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse >> 20
}

// readOnly gets every message and acknowledges it.
func (b *bench) readOnly(facts int) {
	s, err := kafka.NewSubscriber(b.base.Kafka, kafka.SubscriberOptions{Group: "bare", MaxInFlight: 20_000})
	must(b.t, err)
	defer s.Close()
	messages, err := s.Subscribe(b.t.Context(), events.TopicExecutions)
	must(b.t, err)
	for range facts {
		(<-messages).Ack()
	}
}

// await returns when every row is stored: the projector has committed everything.
func (b *bench) await(facts int) {
	admin, err := kafka.NewAdmin(b.base.Kafka)
	must(b.t, err)
	defer admin.Close()
	for {
		offsets, err := admin.CommittedOffsets(b.t.Context(), "projector", events.TopicExecutions)
		must(b.t, err)
		done := int64(0)
		for _, n := range offsets {
			done += n
		}
		if done >= int64(facts) {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestBenchReplay(t *testing.T) {
	b := newBench(t)
	n := number("VERBATIM_BENCH_EXECUTIONS", 2000) / 10
	store, err := clickhouse.Open(t.Context(), b.dsn)
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	into, err := store.Shadow("bench")
	must(t, err)
	run := func() spent {
		return cost(func() {
			_, err := replay.Run(t.Context(), replay.Config{Source: replay.Archive(store, replay.Filter{}), Store: store, Into: into, Logger: b.base.Logger})
			must(t, err)
		})
	}
	small := b.fill(shapes()[0], 0, n, true)
	run() // warms up
	once := run()
	onceHeap := heap()
	large := small + b.fill(shapes()[0], n, 10*n, true)
	ten := run()
	line := func(events int, s spent, heap uint64) string {
		return fmt.Sprintf("%d events %.2f s (%.0f events/s, %.1f µs of CPU each, heap %d MiB)", events, s.wall.Seconds(), float64(events)/s.wall.Seconds(), s.cpu.Seconds()*1e6/float64(events), heap)
	}
	fmt.Printf("replay       %s   %s   ratio %.1f of the clock, %.1f of CPU\n",
		line(small, once, onceHeap), line(large, ten, heap()), ten.wall.Seconds()/once.wall.Seconds(), ten.cpu.Seconds()/once.cpu.Seconds())
}

func TestBenchViews(t *testing.T) {
	b := newBench(t)
	options, err := chgo.ParseDSN(b.dsn)
	must(t, err)
	db := chgo.OpenDB(options)
	defer db.Close()
	rows := number("VERBATIM_BENCH_ROWS", 10_000_000)
	const days = 30
	for day := range days { // A day is a partition; a query has a time limit.
		_, err = db.ExecContext(t.Context(), fmt.Sprintf(`INSERT INTO executions (created_day, execution_id, status, succeeded, exit_code, error, error_source, reason, action,
	requested_at, started_at, ended_at, duration_ms, user_ms, system_ms, runner, attempt, sealed, complete, version, max_resident_bytes, stdout)
SELECT toDate('2026-11-01') + %d, concat('019366e0-7c00-7000-%%03d-', leftPad(toString(number), 12, '0')), if(number %% 10 = 0, 'failed', 'succeeded'), number %% 10 != 0,
	if(number %% 10 = 0, 1, 0), if(number %% 10 = 0, concat('error number ', toString(number %% 50)), NULL), if(number %% 10 = 0, 'stderr', NULL), if(number %% 10 = 0, 'exit_code', NULL),
	concat('action', toString(number %% 20)), toDateTime64(toDate('2026-11-01') + %d, 9, 'UTC') + number %% 86400 AS at, at, at + 5, number %% 60000, number %% 1000, number %% 100,
	concat('runner', toString(number %% 16)), 1, true, number %% 1000 != 1, 7, 1048576, 'some output of it'
FROM numbers(%d)`, day, day, rows/days))
		must(t, err)
	}
	b.fill(shapes()[0], 0, 20, true)
	for _, view := range []struct{ name, query string }{
		{"current_executions", "SELECT status, count() FROM current_executions WHERE created_day = '2026-11-10' GROUP BY status"},
		{"outcomes_by_hour", "SELECT * FROM outcomes_by_hour WHERE created_day = '2026-11-10'"},
		{"failure_reasons", "SELECT * FROM failure_reasons WHERE created_day = '2026-11-10' ORDER BY executions DESC LIMIT 20"},
		{"runner_utilisation", "SELECT * FROM runner_utilisation WHERE created_day = '2026-11-10'"},
		{"incomplete_executions", "SELECT * FROM incomplete_executions WHERE created_day = '2026-11-10' LIMIT 100"},
		{"output_lines", "SELECT * FROM output_lines WHERE execution_id = '019366e0-7c03-7000-8000-000000000003'"},
		{"attempts", "SELECT * FROM attempts WHERE execution_id = '019366e0-7c03-7000-8000-000000000003'"},
		{"search", "SELECT execution_id, output_offset FROM events WHERE hasAllTokens(lower(output), tokens('worker 99', 'splitByNonAlpha')) LIMIT 100"},
	} {
		var times []time.Duration
		for i := range 21 {
			began := time.Now()
			drain(t, db, view.query)
			if i > 0 {
				times = append(times, time.Since(began))
			}
		}
		slices.Sort(times)
		fmt.Printf("view         %-22s p50 %4d ms  p95 %4d ms  rows read %s\n", view.name, times[len(times)/2].Milliseconds(), times[len(times)*95/100].Milliseconds(), estimate(t, db, view.query))
	}
	var total uint64
	must(t, db.QueryRowContext(t.Context(), "SELECT count() FROM executions").Scan(&total))
	fmt.Printf("view         over %d rows in %d days, on %s\n", total, days, machine())
}

// machine is what this runs on, and how busy it was: the numbers are worth as much as that.
func machine() string {
	model, load := "unknown processor", "unknown"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(text), "model name\t: "); ok {
			model, _, _ = strings.Cut(rest, "\n")
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(text), " ")
	}
	return fmt.Sprintf("%d cores of %s, load %s", runtime.NumCPU(), model, load)
}

func drain(t *testing.T, db *sql.DB, query string) {
	rows, err := db.QueryContext(t.Context(), query)
	must(t, err)
	for rows.Next() { //nolint:revive // Only the time counts.
	}
	must(t, rows.Err())
	must(t, rows.Close())
}

func estimate(t *testing.T, db *sql.DB, query string) string {
	var database, table string
	var parts, rows, marks uint64
	if err := db.QueryRowContext(t.Context(), "EXPLAIN ESTIMATE "+query).Scan(&database, &table, &parts, &rows, &marks); err != nil {
		return "not known: " + err.Error()
	}
	return fmt.Sprint(rows)
}
