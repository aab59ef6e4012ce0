package wiring_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/preparer"
	"verbatim.dev/services/recorder/watchdog"
	"verbatim.dev/services/runner"
)

// clockVariable makes this test binary a process that writes the time, so many times.
const clockVariable = "VERBATIM_TEST_CLOCK"

// tick is how often it does: not in step with any delay on the way to the row.
const tick = 270 * time.Millisecond

func writeClock(lines string) {
	n, _ := strconv.Atoi(lines)
	for range n {
		fmt.Println(time.Now().UnixNano())
		time.Sleep(tick) // It is the process that is measured, and writes at this pace.
	}
	time.Sleep(time.Hour) // It still runs when the last line is looked at; the runner ends it.
}

// What a running process wrote is in its row and in the archive within a second. A test on a busy machine holds it to no more than
// that the process need not end first and that nothing waits for long; VERBATIM_BENCH_FRESHNESS (scripts/bench-projector) holds it to the second.
func TestPartialOutputIsFresh(t *testing.T) {
	t.Parallel()
	lines, median, longest := 5, 10*time.Second, 30*time.Second
	if os.Getenv("VERBATIM_BENCH_FRESHNESS") != "" {
		lines, median, longest = 40, time.Second, 10*time.Second
	}
	r := newRig(t)
	r.start(wiring.Recorder(r.base, r.dsn, watchdog.Config{}, wiring.Artifacts{}))
	r.start(wiring.Projector(r.base, r.dsn, 10))
	r.start(wiring.Preparer(r.base, preparer.Config{}))
	r.start(wiring.Runner(r.base, runner.Config{ID: "r", DataDir: t.TempDir(), Grace: time.Second, Logger: r.base.Logger}))

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	id := newID(t)
	request := r.message(id, 0, 1, &executionv1.ExecutionRequested{What: &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{
		Argv: []string{self}, Environment: map[string]string{clockVariable: strconv.Itoa(lines)},
	}}})
	if err := r.pub.PublishContext(t.Context(), events.TopicRequests, request); err != nil {
		t.Fatal(err)
	}
	store := r.store()
	row := watch(lines, func() string {
		shown, err := store.Row(t.Context(), id)
		if err != nil || shown.Stdout == nil {
			return ""
		}
		if shown.Status != execution.StatusRunning {
			t.Errorf("the execution is %s: %v", shown.Status, shown.Error)
		}
		return *shown.Stdout
	})
	archive := watch(lines, func() string {
		var text strings.Builder
		for chunk, err := range store.Output(t.Context(), id, 1, "stdout", 0, 1<<20) {
			if err == nil {
				text.Write(chunk.Data)
			}
		}
		return text.String()
	})
	for name, late := range map[string]<-chan []time.Duration{"row": row, "archive": archive} {
		ages := <-late
		if len(ages) < lines {
			t.Fatalf("%s: only %d of %d lines came", name, len(ages), lines)
		}
		slices.Sort(ages)
		p50, p95, worst := ages[len(ages)/2], ages[len(ages)*95/100], ages[len(ages)-1]
		t.Logf("freshness    a line written is in the %-8s p50 %4d ms  p95 %4d ms  longest %4d ms", name, p50.Milliseconds(), p95.Milliseconds(), worst.Milliseconds())
		if p50 > median || worst > longest {
			t.Errorf("%s: a line is seen after %s, at worst %s; want %s, %s", name, p50, worst, median, longest)
		}
	}
}

// watch looks at a text of times until it has so many lines, and returns how old each was when it was first seen.
func watch(lines int, look func() string) <-chan []time.Duration {
	done := make(chan []time.Duration, 1)
	go func() {
		var ages []time.Duration
		deadline := time.After(2 * time.Minute)
		for len(ages) < lines {
			seen := strings.SplitAfter(look(), "\n")
			now := time.Now()
			for _, line := range seen[min(len(ages), len(seen)):] {
				if at, err := strconv.ParseInt(strings.TrimSuffix(line, "\n"), 10, 64); err == nil && strings.HasSuffix(line, "\n") {
					ages = append(ages, now.Sub(time.Unix(0, at)))
				}
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-deadline:
				done <- ages
				return
			}
		}
		done <- ages
	}()
	return done
}
