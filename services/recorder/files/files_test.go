package files_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/recorder/files"
)

func TestArtifactsEqualTheOutput(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.handle(out(stdout, 0, "hello "))
	b.handle(out(stdout, 6, "\x00\xffworld"))
	end := b.put("/verbatim/runner/r", seal("hello \x00\xffworld"))
	b.deliver(end)
	b.wantObjects(map[string]string{"stdout.log": "hello \x00\xffworld", "stderr.log": ""})
	a := b.last(1, stdout)
	wantCheck(t, a, match, 13)
	if sum := sha256.Sum256([]byte("hello \x00\xffworld")); !bytes.Equal(a.GetSha256(), sum[:]) {
		t.Error("the digest is not that of the bytes")
	}
	if want := "file://" + b.folder + "/"; !strings.HasPrefix(a.GetUri(), want) || !strings.HasSuffix(a.GetUri(), b.id+"/1/stdout.log") {
		t.Errorf("URI is %s", a.GetUri())
	}
	// Delivered again, to this recorder and to one that was just started.
	b.deliver(end)
	b.restart()
	b.deliver(end)
	b.last(1, stdout)
}

func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	// What a killed one left: a temporary file, parts, half of the artifacts under their names.
	for name, content := range map[string]string{"stdout.log.18ab.tmp": "hel", "stdout.log": "old", "stdout.log.parts/00000000000000000000": "hello"} {
		b.leave(name, content)
	}
	b.put("/verbatim/runner/r", out(stdout, 0, "hello"))
	b.handle(seal("hello"))
	b.wantObjects(map[string]string{"stdout.log": "hello", "stderr.log": ""})
	wantCheck(t, b.last(1, stdout), match, 5)
}

func TestHoles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		facts      []proto.Message
		content    string
		check      executionv1.DigestCheck
		left       []*executionv1.ByteRange
		mismatches float64
	}{
		{"elided", []proto.Message{out(stdout, 0, "head"), out(stdout, 1000, "tail"), seal("headtail", span(4, 1000))}, "headtail", match, []*executionv1.ByteRange{span(4, 1000)}, 0},
		{"elided to the end", []proto.Message{out(stdout, 0, "head"), seal("head", span(4, 1000))}, "head", match, []*executionv1.ByteRange{span(4, 1000)}, 0},
		{"missing in the middle", []proto.Message{out(stdout, 0, "he"), out(stdout, 4, "o"), seal("hello")}, "heo", mismatch, []*executionv1.ByteRange{span(2, 4)}, 1},
		{"missing at the end", []proto.Message{out(stdout, 0, "he"), seal("hello")}, "he", mismatch, []*executionv1.ByteRange{span(2, 5)}, 1},
		{"other bytes", []proto.Message{out(stdout, 0, "HELLO"), seal("hello")}, "HELLO", mismatch, nil, 1},
		{"more than was sealed", []proto.Message{out(stdout, 0, "hello"), out(stdout, 5, "!"), seal("hello")}, "hello!", match, nil, 0},
		{"over the seal's end", []proto.Message{out(stdout, 0, "hello!"), seal("hello")}, "hello!", match, nil, 0},
		{"never sealed", []proto.Message{out(stdout, 0, "hel"), &executionv1.RunnerLost{Runner: "r"}}, "hel", unknown, nil, 0},
		{"two seals", []proto.Message{out(stdout, 0, "hello"), seal("hello"), out(stdout, 5, "!"), seal("hello!")}, "hello!", match, nil, 0},
		{"out of any place", []proto.Message{out(stdout, 1<<63, "x"), seal("")}, "x", match, []*executionv1.ByteRange{span(0, 1<<63)}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			var last *message.Message
			for _, f := range c.facts {
				last = b.put("/verbatim/runner/r", f)
			}
			b.deliver(last)
			b.wantObjects(map[string]string{"stdout.log": c.content, "stderr.log": ""})
			wantCheck(t, b.last(1, stdout), c.check, uint64(len(c.content)), c.left...)
			if got := metric(t, b.registry, "verbatim_recorder_artifact_mismatches_total"); got != c.mismatches {
				t.Errorf("%v mismatches are counted, want %v", got, c.mismatches)
			}
		})
	}
}

func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s: %d", name, testutil.CollectAndCount(registry))
	return 0
}

func TestLateChunks(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	first := b.put("/verbatim/runner/r", out(stdout, 0, "hello"))
	b.deliver(first)
	b.handle(seal("hello"))
	wantCheck(t, b.last(1, stdout), match, 5)
	// Something that had the pipe still wrote; the recorder does not know this attempt any more.
	b.restart()
	b.deliver(first) // Below the seal: nothing is to be made again.
	b.last(1, stdout)
	b.handle(out(stdout, 5, ", world"))
	b.wantObjects(map[string]string{"stdout.log": "hello, world", "stderr.log": ""})
	wantCheck(t, b.last(2, stdout), match, 12)
	b.handle(seal("hello, world"))
	b.last(2, stdout) // It says the same.
	// The producer that comes back after it was lost.
	b.handle(&executionv1.RunnerLost{Runner: "r"})
	b.handle(out(stderr, 0, "back"))
	b.wantObjects(map[string]string{"stdout.log": "hello, world", "stderr.log": "back"})
}

// What somebody else said in this service's name does not keep it from saying what it has to.
func TestForgedNumbers(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.AgainDelay = time.Millisecond })
	for _, name := range []string{"recorder.artifacts", "somebody"} {
		b.forge(name, ^uint64(0))
	}
	m := b.put("/verbatim/runner/r", seal(""))
	ctx, cancel := context.WithTimeout(m.Context(), 10*time.Second)
	defer cancel()
	m.SetContext(ctx)
	if err := b.recorder.Handle(m); err != nil {
		t.Fatal(err)
	}
	last := b.facts()[len(b.facts())-1].Event
	if last.ID != events.ID(b.id, 1, "recorder.artifacts", 1) {
		t.Errorf("it said %s", last.ID)
	}
}

func TestManyLateChunksAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.handle(seal(""))
	var handling sync.WaitGroup
	for i := range 100 {
		m := b.put("/outside", out(stdout, uint64(i), "x"))
		handling.Go(func() { b.deliver(m) })
	}
	handling.Wait()
	if got := b.objects()["stdout.log"]; got != strings.Repeat("x", 100) {
		t.Errorf("stdout.log is %q", got)
	}
	if n := len(b.recorded()); n > 50 {
		t.Errorf("the artifacts were made %d times for 100 chunks that came at once", n)
	}
}

// Attempts end at the same time as others are looked for that are to be flushed: neither waits for the other for ever.
func TestManyEndsWhileOthersAreLookedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.PartDelay = 20 * time.Microsecond }) // It looks twice as often.
	const handlers, ends = 8, 300
	var all sync.WaitGroup
	for h := range handlers {
		all.Go(func() {
			for i := range ends {
				// The archive has none of them: there is nothing to make, and much to begin.
				attempt := uint32(1 + h*ends + i)
				e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(b.id, attempt, 1, time.Now(), &executionv1.OutputSealed{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := b.recorder.Handle(b.message(e, int64(attempt))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestZstd(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.Compression = artifact.Zstd })
	text := strings.Repeat("all work and no play\n", 10_000)
	b.handle(out(stdout, 0, text))
	b.handle(seal(text))
	a := b.last(1, stdout)
	wantCheck(t, a, match, uint64(len(text)))
	if a.GetCompression() != "zstd" || !strings.HasSuffix(a.GetUri(), "/stdout.log.zst") {
		t.Errorf("%v", a)
	}
	stored := b.objects()["stdout.log.zst"]
	r, err := zstd.NewReader(strings.NewReader(stored))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != text || len(stored) > len(text)/10 {
		t.Errorf("%d bytes in %d stored: %v", len(got), len(stored), err)
	}
}

func TestPartsWhileItRuns(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.PartBytes, c.PartDelay = 4, 20*time.Millisecond })
	part := func(stream string, offset uint64) string { return fmt.Sprintf("%s.log.parts/%020d", stream, offset) }
	b.handle(out(stdout, 0, "hello"))
	eventually(t, func() error { return b.has(map[string]string{part("stdout", 0): "hello"}) })
	// Another recorder goes on where the parts end.
	b.restart()
	b.handle(out(stdout, 5, "wo"))
	b.handle(out(stdout, 9, "ld"))
	b.handle(out(stderr, 0, "e"))
	eventually(t, func() error {
		return b.has(map[string]string{part("stdout", 0): "hello", part("stdout", 5): "wo", part("stdout", 9): "ld", part("stderr", 0): "e"})
	})
	b.handle(seal("helloworld"))
	b.wantObjects(map[string]string{"stdout.log": "hellowold", "stderr.log": "e"})
}

func (b *bench) has(want map[string]string) error {
	if got := b.objects(); !maps.Equal(got, want) {
		return fmt.Errorf("objects are %q, want %q", got, want)
	}
	return nil
}

func eventually(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) { // The pace of looking into a store, which sends no signal.
		if err = try(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestStoreAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	// The disk that the folder was on is gone.
	if err := os.RemoveAll(b.folder); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.handle(out(stdout, 0, "hello"))
	done := make(chan error)
	end := b.put("/verbatim/runner/r", seal("hello"))
	go func() { done <- b.recorder.Handle(end) }()
	eventually(t, func() error {
		if metric(t, b.registry, "verbatim_recorder_artifact_failures_total") < 2 {
			return fmt.Errorf("it did not fail twice")
		}
		return nil
	})
	select {
	case err := <-done:
		t.Fatalf("the message was settled while the store was away: %v", err)
	default:
	}
	if err := os.Remove(b.folder); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.wantObjects(map[string]string{"stdout.log": "hello", "stderr.log": ""})
	wantCheck(t, b.last(1, stdout), match, 5)
}

func TestStopWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	if err := os.RemoveAll(b.folder); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	end := b.put("/verbatim/runner/r", seal(""))
	done := make(chan error)
	go func() { done <- b.recorder.Handle(end) }()
	eventually(t, func() error {
		if metric(t, b.registry, "verbatim_recorder_artifact_failures_total") == 0 {
			return fmt.Errorf("it did not fail")
		}
		return nil
	})
	b.recorder.Stop()
	if err := <-done; err == nil {
		t.Error("a message whose artifacts were not recorded is acknowledged")
	}
	if len(b.recorded()) > 0 {
		t.Error("OutputRecorded says what is not so")
	}
}

func TestDeleted(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.handle(out(stdout, 0, "private"))
	b.handle(seal("private"))
	b.last(1, stdout)
	deleted := b.delete()
	b.deliver(deleted)
	b.wantObjects(map[string]string{})
	b.deliver(deleted)
	b.wantObjects(map[string]string{})
	// Its process still ran, and the archive has what came of it until the recorder looks for that again.
	b.handle(out(stdout, 7, "late"))
	b.handle(seal("privatelate"))
	b.wantObjects(map[string]string{})
	b.restart()
	b.leave("stdout.log", "left by one that was killed")
	b.handle(&executionv1.RunnerLost{Runner: "r"})
	b.wantObjects(map[string]string{})
	if n := len(b.recorded()); n > 0 {
		t.Errorf("%d OutputRecorded of a deleted execution", n)
	}
}

func TestNoPartsOfADeletedExecution(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.PartDelay = 20 * time.Millisecond })
	b.deliver(b.delete())
	b.leave("stdout.log.parts/00000000000000000000", "left by one that was killed")
	b.handle(out(stdout, 7, "late"))
	eventually(t, func() error { return b.has(map[string]string{}) })
	if n := metric(t, b.registry, "verbatim_recorder_artifact_parts_total"); n > 0 {
		t.Errorf("%v parts of a deleted execution", n)
	}
}

// The member that has the partition now has erased all that there was, and then one that had it before finishes an object.
func TestDeletedWhileArtifactsAreMade(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.reading = func() { b.delete() }
	b.handle(out(stdout, 0, "private"))
	b.handle(seal("private"))
	b.wantObjects(map[string]string{})
	if n := len(b.recorded()); n > 0 {
		t.Errorf("%d OutputRecorded of a deleted execution", n)
	}
}

func TestDeletedWhileAPartIsWritten(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *files.Config) { c.PartDelay = 20 * time.Millisecond })
	b.reading = func() { b.delete() }
	b.handle(out(stdout, 0, "private"))
	eventually(t, func() error {
		if metric(t, b.registry, "verbatim_recorder_artifact_parts_total") == 0 {
			return fmt.Errorf("no part was written")
		}
		return b.has(map[string]string{})
	})
}

func TestNotItsOwnMessages(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	m := b.put("/verbatim/runner/r", seal(""))
	at, _ := positionOf(m.Context())
	at.Partition = (at.Partition + 1) % partitions
	b.deliver(from(t, m, at))
	b.deliver(from(t, message.NewMessage("x", []byte("no event")), at))
	if n := len(b.recorded()); n > 0 || len(b.objects()) > 0 {
		t.Errorf("%d OutputRecorded for a fact in another partition", n)
	}
}
