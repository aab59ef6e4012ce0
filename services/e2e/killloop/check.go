package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"verbatim.dev/services/client"
)

// pipeBytes is what a pipe holds (pipe(7)), and so what is lost when all who could read it are killed.
const pipeBytes = 64 << 10

// findings are what the loop found.
type findings struct {
	executions, whole, waitFailed, ended int
	bytes                                uint64
	broken                               []string
}

func (f findings) problem() error {
	if len(f.broken) == 0 {
		return nil
	}
	return fmt.Errorf("%d broken promises:\n%s", len(f.broken), strings.Join(f.broken, "\n"))
}

// check looks at every execution.
func (l *loop) check(ctx context.Context) (findings, error) {
	f := findings{executions: len(l.started)}
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(4)
	for _, s := range l.started {
		work.Go(func() error {
			v := &verdict{loop: l, started: s}
			if err := v.look(ctx); err != nil {
				return fmt.Errorf("look at execution %d (%s): %w", s.seed, s.id, err)
			}
			mu.Lock()
			defer mu.Unlock()
			f.broken = append(f.broken, v.broken...)
			f.bytes += v.bytes
			switch {
			case v.waitFailed:
				f.waitFailed++
			case v.whole:
				f.whole++
			default:
				f.ended++
			}
			return nil
		})
	}
	err := work.Wait()
	slices.Sort(f.broken)
	return f, err
}

// verdict is about one execution.
type verdict struct {
	loop *loop
	*started
	row               client.Row
	facts             map[string]int
	bytes             uint64
	whole, waitFailed bool
	broken            []string
}

func (v *verdict) bad(format string, args ...any) {
	v.broken = append(v.broken, fmt.Sprintf("execution %d (%s): %s", v.seed, v.id, fmt.Sprintf(format, args...)))
}

var errUnsealed = errors.New("it is not sealed")

// read reads the row and the facts. Without a seal among them it is errUnsealed.
func (v *verdict) read(ctx context.Context) (err error) {
	if v.row, err = v.loop.api.Get(ctx, v.id); err != nil {
		return errFinal{err}
	}
	v.facts = make(map[string]int)
	for fact, err := range v.loop.api.Events(ctx, v.id) {
		if err != nil {
			return errFinal{err}
		}
		v.facts[fact.Name]++
	}
	if !v.row.Sealed || v.facts["OutputSealed"] == 0 {
		return errUnsealed
	}
	return nil
}

func (v *verdict) look(ctx context.Context) error {
	// The last kill may have been a moment ago.
	if err := poll(ctx, func() error { return v.read(ctx) }); err != nil && !errors.Is(err, errUnsealed) {
		return err
	}
	v.whole = true
	written, started := readProgress(v.progress)
	stdout, stderr, err := v.logs(ctx)
	if err != nil {
		return err
	}
	v.output("stdout", stdout, noise(v.seed, 1, v.loop.bytes), written[0])
	v.output("stderr", stderr, noise(v.seed, 2, v.loop.bytes), written[1])
	v.end(started)
	if v.loop.bucket != nil {
		return v.files(ctx, noise(v.seed, 1, v.loop.bytes), noise(v.seed, 2, v.loop.bytes))
	}
	return nil
}

// logs is what "verbatim logs" writes.
func (v *verdict) logs(ctx context.Context) (stdout, stderr []byte, err error) {
	c, err := v.loop.rig().Command(ctx, "logs", "--read-wait", "60s", v.id)
	if err != nil {
		return nil, nil, err
	}
	c.Env = append(c.Env, "VERBATIM_SERVER="+v.loop.server)
	var out, complaint bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaint
	if err := c.Run(); err != nil {
		return nil, nil, fmt.Errorf("verbatim logs: %w: %.500q", err, complaint.String())
	}
	return out.Bytes(), complaint.Bytes(), nil
}

// output checks one stream: what there is, is what was written, and all that was written is there.
func (v *verdict) output(stream string, got, want []byte, written uint64) {
	v.bytes += uint64(len(got))
	if !bytes.HasPrefix(want, got) {
		v.bad("%s: the %d bytes there are not the first ones that were written", stream, len(got))
	}
	lost := uint64(0)
	if v.piped {
		lost = pipeBytes
	}
	if uint64(len(got))+lost < written {
		v.bad("%s: the process wrote %d bytes, %d are there", stream, written, len(got))
	}
	if len(got) < len(want) {
		v.whole = false
		if !v.cut {
			v.bad("%s: %d bytes of %d", stream, len(got), len(want))
		}
	}
	sum, match, n := v.row.StdoutSHA256, v.row.StdoutDigestMatch, v.row.StdoutBytes
	if stream == "stderr" {
		sum, match, n = v.row.StderrSHA256, v.row.StderrDigestMatch, v.row.StderrBytes
	}
	known := sha256.Sum256(want[:min(len(got), len(want))])
	if sum == nil || *sum != hex.EncodeToString(known[:]) || match == nil || !*match {
		v.bad("%s: the row's digest is not the known one", stream)
	}
	if n == nil || *n != uint64(len(got)) {
		v.bad("%s: the row's count is not the %d bytes that are there", stream, len(got))
	}
}

// end checks how the row says that it ended.
func (v *verdict) end(started bool) {
	v.waitFailed = v.facts["WaitFailed"] > 0
	if v.row.Complete == nil || !*v.row.Complete || len(v.row.Missing) > 0 || len(v.row.Elided) > 0 || len(v.row.OutputErrors) > 0 {
		v.bad("it is not complete: missing %v, elided %v, errors %q", v.row.Missing, v.row.Elided, v.row.OutputErrors)
	}
	if len(v.row.Contradictions) > 0 {
		v.bad("contradictions: %q", v.row.Contradictions)
	}
	for fact, most := range map[string]int{"ProcessStarted": 1, "ProcessExited": 1, "WaitFailed": 1, "OutputSealed": 1} {
		if v.facts[fact] > most {
			v.bad("%d facts %s", v.facts[fact], fact)
		}
	}
	if v.facts["ProcessExited"]+v.facts["WaitFailed"]+v.facts["StartFailed"] != 1 || v.facts["OutputSealed"] != 1 {
		v.bad("it has not one end and one seal: %v", v.facts)
	}
	// One that is ended at once has no time to make its file. That one was started is not known when its supervisor is killed around
	// fork(2): then the row says just that.
	if there := v.facts["ProcessStarted"] == 1; started && !there && !v.waitFailed || there && !started && !v.cut {
		v.bad("a process was there: %v, and the facts are %v", started, v.facts)
	}
	exit := v.row.ExitCode
	switch {
	case exit != nil && *exit == startedTwice:
		v.bad("it was started twice")
	case exit != nil && (*exit != int32(exitCodeOf(v.seed)) || !v.whole):
		v.bad("its exit code is %d, the known one is %d", *exit, exitCodeOf(v.seed))
	case exit == nil && !v.cut:
		v.bad("it has no exit code: %v, %v", v.row.Status, v.facts)
	}
}

// report prints the figures.
func (l *loop) report(killing, took time.Duration, f findings) {
	fmt.Fprintf(l.out, "mode %s: %d executions of 2 x %d bytes, up to %d at a time, in %s (%s with the checks)\n",
		l.mode, len(l.started), l.bytes, l.running, killing.Round(time.Second), took.Round(time.Second))
	for _, what := range []string{"worker", "broker", "supervisor", "up", "recorder", "projector", "s3"} {
		if n := l.killed[what]; n > 0 {
			fmt.Fprintf(l.out, "  %-10s killed %d times\n", what, n)
		}
	}
	l.noteMemory()
	for _, name := range slices.Sorted(maps.Keys(l.memory)) {
		fmt.Fprintf(l.out, "  %-10s took %d MiB at most\n", name, l.memory[name]>>20)
	}
	if l.restarts > 0 {
		fmt.Fprintf(l.out, "  ClickHouse stopped and started %d times\n", l.restarts)
	}
	fmt.Fprintf(l.out, "  rows: %d with all output and the known exit code, %d ended with their runner, %d whose status could not be had\n", f.whole, f.ended, f.waitFailed)
	fmt.Fprintf(l.out, "  output read back and compared: %d bytes; broken promises: %d\n", f.bytes, len(f.broken))
}

func readArgs(file string) []string {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
}

func mentions(args []string, what string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, what) })
}
