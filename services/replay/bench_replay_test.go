//go:build benchprojector

package replay_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/replay"
)

// TestBenchReplay rebuilds the rows of an archive, of one with ten times as many executions and of one with twenty times as many, in a
// process of its own, as `verbatim replay` is. What the engine has to do after the archive was filled (merging parts, and with them the
// index of words) is no part of replay, and on this machine it costs more than replay: it is waited for.
func TestBenchReplay(t *testing.T) {
	if dsn := os.Getenv(replayVariable); dsn != "" {
		replayAlone(t, dsn)
		return
	}
	b := newBench(t)
	n := number("VERBATIM_BENCH_EXECUTIONS", 2000) / 10
	run := func() (s spent, alone rebuilt, engine memory) {
		watch := watchMemory(t, b.db())
		s = cost(func() { alone = b.replayInAProcess() })
		s.cpu += alone.CPU
		return s, alone, watch()
	}
	facts, filled := 0, 0
	var first spent
	for _, times := range []int{1, 10, 20} {
		facts += b.fill(shapes()[0], filled, times*n, true)
		filled = times * n
		waited := b.settle()
		if times == 1 {
			run() // warms up
		}
		s, alone, m := run()
		s.wall = alone.Wall // Without the start of the process.
		if times == 1 {
			first = s
		}
		fmt.Printf("replay       %3dx: %7d events %6.2f s, %.1fx of the clock, %.1fx of CPU (%.0f events/s, %.1f µs of CPU each)   at most in use: replay %d MiB (live heap %d MiB); beside it the engine %d MiB, its process %d MiB   began when the engine had been merging what was filled for %.1f s\n",
			times, facts, s.wall.Seconds(), s.wall.Seconds()/first.wall.Seconds(), s.cpu.Seconds()/first.cpu.Seconds(),
			float64(facts)/s.wall.Seconds(), s.cpu.Seconds()*1e6/float64(facts), alone.Process>>20, alone.Heap>>20, m.engine>>20, m.process>>20, waited.Seconds())
	}
}

// replayVariable makes the benchmark rebuild the rows of a database, and say as JSON what that took, and nothing else.
const replayVariable = "VERBATIM_BENCH_REPLAY"

// rebuilt is what a replay took; memory in bytes.
type rebuilt struct {
	Wall, CPU     time.Duration
	Heap, Process uint64
}

func (b *bench) replayInAProcess() (r rebuilt) {
	c := exec.CommandContext(b.t.Context(), os.Args[0], "-test.run", "^TestBenchReplay$", "-test.count", "1")
	c.Env = append(os.Environ(), replayVariable+"="+b.dsn)
	out, err := c.Output()
	must(b.t, err)
	line, _, _ := strings.Cut(string(out), "\n")
	must(b.t, json.Unmarshal([]byte(line), &r))
	return r
}

func replayAlone(t *testing.T, dsn string) {
	store, err := clickhouse.Open(t.Context(), dsn)
	must(t, err)
	defer store.Close()
	into, err := store.Shadow("bench")
	must(t, err)
	watch := watchMemory(t, nil)
	s := cost(func() {
		_, err := replay.Run(t.Context(), replay.Config{Source: replay.Archive(store, replay.Filter{}), Store: store, Into: into, Logger: slog.New(slog.DiscardHandler)})
		must(t, err)
	})
	m := watch()
	must(t, json.NewEncoder(os.Stdout).Encode(rebuilt{Wall: s.wall, CPU: s.cpu, Heap: m.heap, Process: m.process}))
}

// settle returns when the engine has merged what it wants to merge.
func (b *bench) settle() time.Duration {
	db := b.db()
	defer db.Close()
	began, quiet := time.Now(), time.Now()
	for before := ""; time.Since(quiet) < 3*time.Second; <-time.After(100 * time.Millisecond) {
		var running, parts uint64
		must(b.t, db.QueryRowContext(b.t.Context(), "SELECT (SELECT count() FROM system.merges), (SELECT count() FROM system.parts WHERE active)").Scan(&running, &parts))
		if now := fmt.Sprint(parts); running > 0 || now != before {
			before, quiet = now, time.Now()
		}
	}
	return time.Since(began)
}

// memory is the most that was in use, in bytes: by Go after a collection, by the engine as it counts it, and by the process as the kernel
// counts it without files.
type memory struct{ heap, engine, process uint64 }

// watchMemory watches until the returned function is called. It closes db, which is nil where there is no engine.
func watchMemory(t *testing.T, db *sql.DB) (stop func() memory) {
	debug.FreeOSMemory()
	ctx, cancel := context.WithCancel(t.Context())
	var most memory
	done := make(chan struct{})
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	go func() {
		defer close(done)
		if db != nil {
			defer db.Close()
		}
		for ctx.Err() == nil {
			metrics.Read(live)
			most.heap = max(most.heap, live[0].Value.Uint64())
			if db != nil {
				var engine int64
				if err := db.QueryRowContext(ctx, "SELECT value FROM system.metrics WHERE metric = 'MemoryTracking'").Scan(&engine); err == nil {
					most.engine = max(most.engine, uint64(engine))
				}
			}
			most.process = max(most.process, anonymous())
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() memory {
		cancel()
		<-done
		return most
	}
}

// anonymous is the memory of this process that is no file's, in bytes.
func anonymous() (n uint64) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	if _, rest, ok := strings.Cut(string(text), "RssAnon:"); ok {
		_, _ = fmt.Sscanf(rest, "%d", &n)
	}
	return n << 10
}
