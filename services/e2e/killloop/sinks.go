package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"

	"verbatim.dev/services/e2e/rig"
)

// freeAddress is an address that nobody listens on: ClickHouse comes back there, as a server would.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func (l *loop) dsn() string { return "http://" + l.database + "/default" }

func (l *loop) startSinks() error {
	l.sinks, l.memory = make(map[string]*rig.Process), make(map[string]uint64)
	names := []string{"recorder", "projector"}
	if l.mode == "artifacts" {
		names = names[:1] // The projector is in up.
	}
	for _, name := range names {
		if err := l.startSink(name); err != nil {
			return err
		}
	}
	return nil
}

func (l *loop) startSink(name string) (err error) {
	args := []string{name, "--kafka", l.broker.addr, "--topic-prefix", l.prefix(), "--clickhouse", l.dsn()}
	if l.bucket != nil {
		args = append(args, "--artifacts", l.bucket.url)
	}
	l.sinks[name], err = l.rig().Launch(name, args...)
	return err
}

// killSink lets recorder and projector live for a moment, kills one of them, and starts it again.
func (l *loop) killSink(ctx context.Context) error {
	if err := pause(ctx, l.draw()); err != nil {
		return err
	}
	name := []string{"recorder", "projector"}[rand.IntN(len(l.sinks))]
	if l.sinks[name].Running() {
		l.count(name)
	}
	l.noteMemory()
	// One that ended by itself found no database when it started.
	l.sinks[name].Kill()
	return l.startSink(name)
}

// noteMemory remembers what the sinks have taken at most, over all their lives.
func (l *loop) noteMemory() {
	for name, s := range l.sinks {
		l.memory[name] = max(l.memory[name], s.PeakMemory())
	}
}

// restartDatabase stops the process with ClickHouse and the gateway in it, and starts it again.
func (l *loop) restartDatabase(ctx context.Context) error {
	if err := l.up.Stop(patience); err != nil {
		return err
	}
	l.restarts++
	return l.startUp(ctx, l.upArgs...)
}

// replay rebuilds all rows from the log and from the archive, and says where they are not the live ones.
func (l *loop) replay(ctx context.Context) (broken []string) {
	for _, from := range []string{"kafka", "archive"} {
		c, err := l.rig().Command(ctx, "replay", "--from", from, "--into", "from_"+from, "--diff", "--json",
			"--kafka", l.broker.addr, "--topic-prefix", l.prefix(), "--clickhouse", l.dsn())
		if err != nil {
			return append(broken, err.Error())
		}
		var out, complaint bytes.Buffer
		c.Stdout, c.Stderr = &out, &complaint
		runErr := c.Run()
		lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
		var sum struct {
			Facts          uint64 `json:"facts"`
			Executions     int    `json:"executions"`
			LiveExecutions int    `json:"live_executions"`
			Differences    *int   `json:"differences"`
		}
		if err := json.Unmarshal(lines[len(lines)-1], &sum); err != nil || sum.Differences == nil {
			return append(broken, fmt.Sprintf("replay from %s: %v, %v: %.2000q %.500q", from, runErr, err, out.String(), complaint.String()))
		}
		fmt.Fprintf(l.out, "  replay from %-8s %d facts, %d executions (live %d), %d differences\n", from+":", sum.Facts, sum.Executions, sum.LiveExecutions, *sum.Differences)
		if *sum.Differences != 0 || sum.Executions != len(l.started) || sum.LiveExecutions != len(l.started) {
			broken = append(broken, fmt.Sprintf("replay from %s: %.3000s", from, out.String()))
		}
	}
	return broken
}
