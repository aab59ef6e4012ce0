package files_test

import (
	"context"
	"crypto/sha256"
	"errors"
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
	"github.com/prometheus/client_golang/prometheus"
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

	// reading, when set, is called while the output is read.
	reading func()

	mu    sync.Mutex
	log   []clickhouse.ArchivedEvent
	next  int64 // Offset.
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
	offset := b.next
	b.next++
	e, err := events.Producer{Name: "runner", Source: source}.Event(b.id, 1, uint64(offset)+1, time.Now(), data)
	if err != nil {
		b.t.Fatal(err)
	}
	b.log = append(b.log, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: offset})
	return b.message(e, offset)
}

// forge puts a fact of this service's source into the log that it did not say.
func (b *bench) forge(name string, sequence uint64) {
	b.t.Helper()
	e, err := events.Producer{Name: name, Source: "/verbatim/recorder/artifacts"}.Event(b.id, 1, sequence, time.Now(), &executionv1.OutputRecorded{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: int64(len(b.log))})
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

// delete erases the archive but for the fact that says so, whose message it returns.
func (b *bench) delete() *message.Message {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	offset := b.next
	b.next++
	e, err := events.Producer{Name: "delete", Source: "/verbatim/delete"}.Event(b.id, 0, 1, time.Now(), &executionv1.ExecutionDeleted{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.log = []clickhouse.ArchivedEvent{{Event: e, Topic: events.TopicExecutions, Offset: offset}}
	return b.message(e, offset)
}

// leave puts a file into the attempt's folder.
func (b *bench) leave(name, content string) {
	b.t.Helper()
	path := filepath.Join(b.folder, time.Now().UTC().Format(time.DateOnly), b.id, "1", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
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
		b.log = append(b.log, clickhouse.ArchivedEvent{Event: e, Topic: events.TopicExecutions, Offset: b.next})
		b.next++
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
		if b.reading != nil {
			b.reading()
		}
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
		if errors.Is(err, fs.ErrNotExist) {
			return nil // It was just removed.
		}
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
