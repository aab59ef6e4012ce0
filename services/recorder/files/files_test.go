package files_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/recorder/files"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	partitions = 4
	stdout     = executionv1.Stream_STREAM_STDOUT
	stderr     = executionv1.Stream_STREAM_STDERR
)

// bench is a log of one execution's facts, the archive of them, and a recorder of artifacts in a folder.
type bench struct {
	t        *testing.T
	id       string
	folder   string
	config   files.Config
	recorder *files.Recorder
	registry *prometheus.Registry

	mu    sync.Mutex
	log   []clickhouse.ArchivedEvent
	sizes map[string]uint64
}

func newBench(t *testing.T, change func(*files.Config)) *bench {
	t.Helper()
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, id: id, folder: filepath.Join(t.TempDir(), "artifacts"), sizes: map[string]uint64{}}
	b.config = files.Config{
		Archive: b, Barrier: b, Position: positionOf, Publisher: b, Partitions: partitions, Logger: slog.New(slog.DiscardHandler),
		PartDelay: time.Hour, AgainDelay: time.Millisecond,
	}
	b.config.Store = open(t, "file://"+b.folder)
	if change != nil {
		change(&b.config)
	}
	b.start()
	t.Cleanup(func() { b.recorder.Stop() })
	return b
}

func open(t *testing.T, url string) *artifact.Store {
	t.Helper()
	s, err := artifact.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// start starts a recorder that knows nothing.
func (b *bench) start() {
	b.t.Helper()
	b.registry = prometheus.NewRegistry()
	b.config.Registry = b.registry
	var err error
	if b.recorder, err = files.New(b.config); err != nil {
		b.t.Fatal(err)
	}
}

// restart is what a kill leaves: nothing in memory.
func (b *bench) restart() { b.recorder.Stop(); b.start() }

// put writes a fact into the log and the archive and returns its message.
func (b *bench) put(source string, data proto.Message) *message.Message {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	offset := int64(len(b.log))
	e, err := events.Producer{Name: "runner", Source: source}.Event(b.id, 1, uint64(offset)+1, time.Now(), data)
	if err != nil {
		b.t.Fatal(err)
	}
	b.log = append(b.log, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: offset})
	return b.message(e, offset)
}

func (b *bench) message(e events.Event, offset int64) *message.Message {
	m, err := codec.ToMessage(e)
	if err != nil {
		b.t.Fatal(err)
	}
	return from(b.t, m, kafka.Position{Partition: kafka.PartitionFor([]byte(b.id), partitions), Offset: offset})
}

type positionKey struct{}

// from says where a message comes from.
func from(t *testing.T, m *message.Message, at kafka.Position) *message.Message {
	m.SetContext(context.WithValue(t.Context(), positionKey{}, at))
	return m
}

func positionOf(ctx context.Context) (kafka.Position, bool) {
	at, ok := ctx.Value(positionKey{}).(kafka.Position)
	return at, ok
}

func (b *bench) handle(data proto.Message) {
	b.t.Helper()
	b.deliver(b.put("/verbatim/runner/r", data))
}

// deliver waits for a message to be acknowledged.
func (b *bench) deliver(m *message.Message) {
	b.t.Helper()
	if err := b.recorder.Handle(m); err != nil {
		b.t.Fatal(err)
	}
}

// Wait implements files.Barrier: the archive is the log.
func (b *bench) Wait(ctx context.Context, _ int, _ time.Duration) bool { return ctx.Err() == nil }

// PublishContext implements files.Publisher.
func (b *bench) PublishContext(_ context.Context, _ string, ms ...*message.Message) error {
	for _, m := range ms {
		e, err := codec.FromMessage(m)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.log = append(b.log, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: int64(len(b.log))})
		b.mu.Unlock()
	}
	return nil
}

func (b *bench) facts() []clickhouse.ArchivedEvent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *bench) LastOffsets(_ context.Context, attempts []clickhouse.Attempt, types ...string) (map[clickhouse.Attempt]int64, error) {
	last := map[clickhouse.Attempt]int64{}
	for _, f := range b.facts() {
		if name := (clickhouse.Attempt{ID: f.Event.Subject, Number: f.Event.Attempt}); slices.Contains(attempts, name) && slices.Contains(types, f.Event.Type) {
			last[name] = f.Offset
		}
	}
	return last, nil
}

func (b *bench) AttemptFacts(_ context.Context, _ clickhouse.Attempt, types ...string) (out []clickhouse.ArchivedEvent, _ error) {
	for _, f := range b.facts() {
		if slices.Contains(types, f.Event.Type) {
			out = append(out, f)
		}
	}
	return out, nil
}

// Output yields chunks as the archive does; the facts of these tests do not overlap.
func (b *bench) Output(_ context.Context, _ string, _ uint32, stream string, from, _ uint64) iter.Seq2[clickhouse.Chunk, error] {
	byOffset := map[uint64][]byte{}
	for _, f := range b.facts() {
		if c, ok := f.Event.Data.(*executionv1.OutputChunk); ok && events.StreamName(c.GetStream()) == stream && c.GetOffset() >= from {
			byOffset[c.GetOffset()] = c.GetData()
		}
	}
	return func(yield func(clickhouse.Chunk, error) bool) {
		for _, at := range slices.Sorted(maps.Keys(byOffset)) {
			if !yield(clickhouse.Chunk{Attempt: 1, Stream: stream, Offset: at, Data: byOffset[at]}, nil) {
				return
			}
		}
	}
}

// recorded are the OutputRecorded facts, by rising offset.
func (b *bench) recorded() (ds []*executionv1.OutputRecorded) {
	b.t.Helper()
	sequence := uint64(0)
	for _, f := range b.facts() {
		if d, ok := f.Event.Data.(*executionv1.OutputRecorded); ok {
			if sequence++; f.Event.Sequence != sequence {
				b.t.Errorf("OutputRecorded has sequence %d, want %d", f.Event.Sequence, sequence)
			}
			ds = append(ds, d)
		}
	}
	return ds
}

// last is the last word about a stream.
func (b *bench) last(count int, stream executionv1.Stream) *executionv1.Artifact {
	b.t.Helper()
	ds := b.recorded()
	if len(ds) != count {
		b.t.Fatalf("%d OutputRecorded, want %d", len(ds), count)
	}
	for _, a := range ds[count-1].GetArtifacts() {
		if a.GetStream() == stream {
			return a
		}
	}
	b.t.Fatalf("nothing is said of %s", stream)
	return nil
}

// objects are the files there are, by what follows the attempt's folder.
func (b *bench) objects() map[string]string {
	b.t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(b.folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // It was just renamed or removed.
		}
		_, name, _ := strings.Cut(filepath.ToSlash(path), b.id+"/1/")
		got[name] = string(content)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

func (b *bench) wantObjects(want map[string]string) {
	b.t.Helper()
	if got := b.objects(); !maps.Equal(got, want) {
		b.t.Errorf("objects are %.300q\nwant %.300q", got, want)
	}
}

func out(stream executionv1.Stream, offset uint64, data string) *executionv1.OutputChunk {
	return &executionv1.OutputChunk{Stream: stream, Offset: offset, Data: []byte(data)}
}

// seal states that stdout had these bytes with these ranges elided, and stderr none.
func seal(published string, elided ...*executionv1.ByteRange) *executionv1.OutputSealed {
	sum, nothing := sha256.Sum256([]byte(published)), sha256.Sum256(nil)
	captured := uint64(len(published))
	for _, r := range elided {
		captured += r.GetEnd() - r.GetStart()
	}
	return &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
		{Stream: stdout, CapturedBytes: captured, PublishedBytes: uint64(len(published)), Elided: elided, PublishedSha256: sum[:]},
		{Stream: stderr, PublishedSha256: nothing[:], Sha256: nothing[:]},
	}}
}

func wantCheck(t *testing.T, a *executionv1.Artifact, check executionv1.DigestCheck, size uint64, left ...*executionv1.ByteRange) {
	t.Helper()
	if a.GetDigestCheck() != check || a.GetSizeBytes() != size || len(a.GetLeftOut()) != len(left) {
		t.Errorf("the artifact is %v\nwant %s, %d bytes, left out %v", a, check, size, left)
		return
	}
	sum := uint64(0)
	for i, r := range a.GetLeftOut() {
		sum += left[i].GetEnd() - left[i].GetStart()
		if !proto.Equal(r, left[i]) {
			t.Errorf("left out is %v, want %v", a.GetLeftOut(), left)
		}
	}
	if a.GetLeftOutBytes() != sum {
		t.Errorf("%d bytes are left out, want %d", a.GetLeftOutBytes(), sum)
	}
}

const (
	match    = executionv1.DigestCheck_DIGEST_CHECK_MATCH
	mismatch = executionv1.DigestCheck_DIGEST_CHECK_MISMATCH
	unknown  = executionv1.DigestCheck_DIGEST_CHECK_UNSPECIFIED
)

func span(start, end uint64) *executionv1.ByteRange {
	return &executionv1.ByteRange{Start: start, End: end}
}

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
	left := filepath.Join(b.folder, time.Now().UTC().Format("2006-01-02"), b.id, "1")
	for name, content := range map[string]string{"stdout.log.18ab.tmp": "hel", "stdout.log": "old", "stdout.log.parts/00000000000000000000": "hello"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(left, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(left, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
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
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
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
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(b.id, 0, 1, time.Now(), &executionv1.ExecutionDeleted{})
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.log = nil // So does the archive.
	b.mu.Unlock()
	b.deliver(b.message(e, 100))
	b.wantObjects(map[string]string{})
	// What comes after that is not kept either: the archive has erased it.
	b.deliver(b.message(e, 101))
	b.wantObjects(map[string]string{})
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
