//go:build benchprojector

package replay_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"runtime"
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

func (b *bench) db() *sql.DB {
	options, err := chgo.ParseDSN(b.dsn)
	must(b.t, err)
	return chgo.OpenDB(options)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse >> 20
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
