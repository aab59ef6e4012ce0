package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func row(out io.Writer, what, ours, bare string, ratio float64, target string) {
	r := ""
	if ratio > 0 {
		r = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(out, "%-46s %12s %12s %7s  %s\n", what, ours, bare, r, target)
}

// shortCommands compares executions per second of a command that does nothing.
func (b *bench) shortCommands(ctx context.Context, out io.Writer) error {
	argv := []string{"/bin/true"}
	var loop float64 // What one bare loop does.
	for _, parallel := range []int{1, b.parallel} {
		n := b.commands
		if parallel == 1 {
			n /= 4
		}
		var ours, bare, cpu []float64
		for range b.rounds {
			before, err := b.usage()
			if err != nil {
				return err
			}
			took, err := b.execute(ctx, argv, n, parallel)
			if err != nil {
				return err
			}
			ours = append(ours, float64(n)/took.Seconds())
			after, err := b.usage()
			if err != nil {
				return err
			}
			cpu = append(cpu, float64((after.cpu-before.cpu).Microseconds())/float64(n)/1000)
			if took, err = b.bareLoop(ctx, argv, n, parallel); err != nil {
				return err
			}
			bare = append(bare, float64(n)/took.Seconds())
		}
		rate, beside := median(ours), median(bare)
		if parallel == 1 {
			loop = beside
			row(out, "short commands, one at a time, per second", fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.0f", beside), rate/beside, "")
		} else {
			row(out, fmt.Sprintf("short commands, %d at a time, beside %[1]d loops", parallel), fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.0f", beside), rate/beside, "≥ 0.50")
			row(out, "  the same, beside one loop", fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.0f", loop), rate/loop, "")
		}
		row(out, "  cpu of the runner for each, ms", fmt.Sprintf("%.1f", median(cpu)), "", 0, "")
	}
	return nil
}

// bareLoop is what one writes oneself: a working directory for each, both streams read, the exit code looked at.
func (b *bench) bareLoop(ctx context.Context, argv []string, n, parallel int) (time.Duration, error) {
	began := time.Now()
	work := make(chan int)
	failed := make(chan error, parallel)
	for range parallel {
		go func() {
			var err error
			for range work {
				if err == nil {
					err = b.bareCommand(ctx, argv)
				}
			}
			failed <- err
		}()
	}
	for i := range n {
		work <- i
	}
	close(work)
	for range parallel {
		if err := <-failed; err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (b *bench) bareCommand(ctx context.Context, argv []string) error {
	dir, err := os.MkdirTemp(b.rig.Dir, "bare")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Dir, c.Stdout, c.Stderr = dir, &stdout, &stderr
	return c.Run()
}

// largeOutput compares the throughput of one output up to its acknowledgement with the same command into a file: with the limit that an
// execution has when it does not say otherwise, and with every byte published.
func (b *bench) largeOutput(ctx context.Context, out io.Writer) error {
	for _, of := range []struct {
		what  string
		limit *executionv1.OutputLimit
	}{{"default limit", nil}, {"all published", &executionv1.OutputLimit{None: true}}} {
		if err := b.largeOutputOf(ctx, out, of.what, of.limit); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) largeOutputOf(ctx context.Context, out io.Writer, what string, limit *executionv1.OutputLimit) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := []string{self, "write", strconv.Itoa(b.megabytes)}
	var ours, bare, synced, cpu, bareCPU []float64
	size := float64(b.megabytes)
	for range b.rounds {
		before, err := b.usage()
		if err != nil {
			return err
		}
		took, err := b.acknowledged(ctx, argv, limit)
		if err != nil {
			return err
		}
		after, err := b.usage()
		if err != nil {
			return err
		}
		ours, cpu = append(ours, size/took.Seconds()), append(cpu, float64((after.cpu-before.cpu).Microseconds())/size/1000)
		took, used, disk, err := b.bareFile(ctx, argv)
		if err != nil {
			return err
		}
		synced = append(synced, size/disk.Seconds())
		bare, bareCPU = append(bare, size/took.Seconds()), append(bareCPU, float64(used.Microseconds())/size/1000)
	}
	row(out, fmt.Sprintf("%d MiB, %s, MiB/s, beside > file", b.megabytes, what), fmt.Sprintf("%.0f", median(ours)), fmt.Sprintf("%.0f", median(bare)), median(ours)/median(bare), "≥ 0.40")
	row(out, "  the same, beside > file && sync file", fmt.Sprintf("%.0f", median(ours)), fmt.Sprintf("%.0f", median(synced)), median(ours)/median(synced), "")
	row(out, "  cpu, ms/MiB (runner; beside: the command)", fmt.Sprintf("%.2f", median(cpu)), fmt.Sprintf("%.2f", median(bareCPU)), 0, "")
	return nil
}

// bareFile is `command > file` on the same disk: how long it took, its cpu time, and how long until the file was on the disk.
func (b *bench) bareFile(ctx context.Context, argv []string) (took, cpu, disk time.Duration, err error) {
	name := filepath.Join(b.rig.Dir, "bare.out")
	f, err := os.Create(name)
	if err != nil {
		return 0, 0, 0, err
	}
	defer os.Remove(name)
	defer f.Close()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout = f
	began := time.Now()
	if err := c.Run(); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(began)
	if err := f.Sync(); err != nil {
		return 0, 0, 0, err
	}
	return took, c.ProcessState.UserTime() + c.ProcessState.SystemTime(), time.Since(began), nil
}

// idleProcesses measures what a process that does nothing costs the runner.
func (b *bench) idleProcesses(ctx context.Context, out io.Writer) error {
	before, err := b.usage()
	if err != nil {
		return err
	}
	fifo := filepath.Join(b.rig.Dir, "idle")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		return err
	}
	ids, err := b.submit(ctx, []string{"sh", "-c", "read x <" + fifo}, nil, b.idle)
	if err != nil {
		return err
	}
	if err := b.facts.started(ctx, ids); err != nil {
		return err
	}
	began := time.Now()
	busy, err := b.usage()
	if err != nil {
		return err
	}
	select {
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := b.usage()
	if err != nil {
		return err
	}
	// Opened for both, so that it does not wait; closed when all have read their end.
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("\n", b.idle)); err != nil {
		return err
	}
	if err := b.facts.sealed(ctx, ids); err != nil {
		return err
	}
	row(out, fmt.Sprintf("memory per idle process (of %d), KiB", b.idle), fmt.Sprintf("%.0f", float64(after.private-before.private)/float64(b.idle)/1024), "", 0, "")
	row(out, "  cpu of all of them, % of a core", fmt.Sprintf("%.1f", 100*float64(after.cpu-busy.cpu)/float64(time.Since(began))), "", 0, "")
	return nil
}

// timeToLog measures the time from write(2) to when a consumer has the bytes, for lines that are written now and then.
func (b *bench) timeToLog(ctx context.Context, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, every := range []time.Duration{time.Second, 20 * time.Millisecond} {
		ids, err := b.submit(ctx, []string{self, "tick", b.ticking.String(), every.String()}, nil, 1)
		if err != nil {
			return err
		}
		if err := b.facts.sealed(ctx, ids); err != nil {
			return err
		}
		took := b.facts.delays(ids[0])
		if len(took) == 0 {
			return fmt.Errorf("no line of %s arrived", ids[0])
		}
		slices.Sort(took)
		at := func(p float64) string {
			return fmt.Sprintf("%.0f", float64(took[min(len(took)-1, int(p*float64(len(took))))].Microseconds())/1000)
		}
		row(out, fmt.Sprintf("write(2) to read from the log, a line every %s, ms", every), "p50 "+at(0.5), "p99 "+at(0.99), 0, "published within 100 ms")
	}
	return nil
}

// play makes this binary one of the processes.
func play(args []string) (code int, played bool) {
	if len(args) > 1 {
		switch args[1] {
		case "write":
			return writeMuch(args[2]), true
		case "tick":
			return tick(args[2], args[3]), true
		}
	}
	return playRig(args)
}

// writeMuch writes MiB of lines like those of a log, made beforehand, as fast as it is taken.
func writeMuch(megabytes string) int {
	n, err := strconv.Atoi(megabytes)
	if err != nil {
		return 2
	}
	const block = 1 << 20
	var lines bytes.Buffer
	for r := rand.New(rand.NewPCG(1, 2)); lines.Len() < 17*block; {
		fmt.Fprintf(&lines, "2026-11-25T08:%02d:%02d.%06dZ INFO request handled id=%016x path=/v1/things/%d status=200 bytes=%d took=%dus\n",
			r.IntN(60), r.IntN(60), r.IntN(1e6), r.Uint64(), r.IntN(5000), r.IntN(1<<20), r.IntN(90_000))
	}
	for i := range n { // From ever another place, so that nothing repeats within what a codec looks at.
		at := i % 16 * block
		if _, err := os.Stdout.Write(lines.Bytes()[at : at+block]); err != nil {
			return 1
		}
	}
	return 0
}

// tick writes lines that say when they were written, in nanoseconds since 1970.
func tick(lasting, every string) int {
	total, err1 := time.ParseDuration(lasting)
	pace, err2 := time.ParseDuration(every)
	if err1 != nil || err2 != nil {
		return 2
	}
	ticker := time.NewTicker(pace)
	for end := time.Now().Add(total); time.Now().Before(end); <-ticker.C {
		if _, err := fmt.Fprintln(os.Stdout, time.Now().UnixNano()); err != nil {
			return 1
		}
	}
	return 0
}

// cpuOf is the user and system time of a process (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of %d has %d fields", pid, len(fields))
	}
	ticks := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// privateOf is the memory of a process that no other has, in bytes (proc_pid_smaps(5)).
func privateOf(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && strings.HasPrefix(fields[0], "Private_") {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				return 0, err
			}
			sum += n << 10
		}
	}
	return sum, nil
}

// delays collects how long lines took.
type delays struct {
	mu   sync.Mutex
	rest []byte
	took []time.Duration
}

func (d *delays) take(data []byte, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rest = append(d.rest, data...)
	for {
		line, rest, whole := bytes.Cut(d.rest, []byte{'\n'})
		if !whole {
			return
		}
		if n, err := strconv.ParseInt(string(line), 10, 64); err == nil {
			d.took = append(d.took, now.Sub(time.Unix(0, n)))
		}
		d.rest = rest
	}
}
