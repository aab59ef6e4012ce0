package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/spool"
)

const (
	stdout = executionv1.Stream_STREAM_STDOUT
	stderr = executionv1.Stream_STREAM_STDERR
	// patience bounds every wait for something that must happen.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(fullDiskVariable); dir != "" {
		os.Exit(playFullDisk(dir))
	}
	goleak.VerifyTestMain(m)
}

func config() spool.Config {
	return spool.Config{ChunkBytes: 1000, FlushInterval: 10 * time.Millisecond, LimitBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)}
}

// tester is what the tests and rapid's have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// process is a process as a supervisor has it: it writes, and whoever reads may come and go.
type process struct {
	write, read [2]*os.File
}

func newProcess(t tester) *process {
	t.Helper()
	p := &process{}
	for i := range p.write {
		var err error
		if p.read[i], p.write[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *process) close() {
	for i := range p.write {
		_, _ = p.write[i].Close(), p.read[i].Close()
	}
}

// session is one worker's time with the spool.
type session struct {
	*spool.Spool
	ended chan error
}

func open(t tester, c spool.Config, folder string, p *process, marks [2]spool.Mark) session {
	t.Helper()
	s, err := spool.Open(c, folder, marks[0], marks[1])
	if err != nil {
		t.Fatal(err)
	}
	var copies [2]*os.File
	for i, f := range p.read {
		copies[i] = duplicate(t, f)
	}
	s.Attach(copies[0], copies[1])
	x := session{s, make(chan error, 2)}
	for _, id := range []executionv1.Stream{stdout, stderr} {
		go func() { x.ended <- s.Read(context.Background(), id) }()
	}
	return x
}

// end waits until both streams were read and wants each to end so.
func (x session) end(t tester, want error) {
	t.Helper()
	for range 2 {
		select {
		case err := <-x.ended:
			if !errors.Is(err, want) {
				t.Errorf("read ended with %v, want %v", err, want)
			}
		case <-time.After(patience):
			t.Fatal("reading does not end")
		}
	}
}

// collected is what came out.
type collected [2][]byte

func (c *collected) take(t tester, s *spool.Spool, chunk spool.Chunk, most int) {
	t.Helper()
	i := int(chunk.Stream - stdout)
	if chunk.Offset != uint64(len(c[i])) || chunk.Length < 1 || chunk.Length > most {
		t.Fatalf("%s: chunk of %d bytes at %d after %d bytes", chunk.Stream, chunk.Length, chunk.Offset, len(c[i]))
	}
	data, err := s.Load(chunk)
	if err != nil {
		t.Fatal(err)
	}
	c[i] = append(c[i], data...)
}

// Whatever is written in whatever pieces comes out, in order and once, however often the reader is replaced by another one, and
// wherever the former one had got to with cutting and with publishing.
func TestBytesInAreBytesOut(t *testing.T) {
	t.Parallel()
	folders := t.TempDir()
	var runs atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		c := config()
		c.ChunkBytes = rapid.IntRange(1, 3000).Draw(t, "chunk bytes")
		folder := filepath.Join(folders, fmt.Sprint(runs.Add(1)))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		p := newProcess(t)
		defer p.close()
		source := rand.NewChaCha8([32]byte{byte(runs.Load())})
		var in, out collected
		var marks [2]spool.Mark
		for sessions := rapid.IntRange(1, 4).Draw(t, "sessions"); sessions > 0; sessions-- {
			x := open(t, c, folder, p, marks)
			for range rapid.IntRange(0, 12).Draw(t, "writes") {
				i := rapid.IntRange(0, 1).Draw(t, "stream")
				// Less than a pipe takes, so that a write never waits for the reader.
				data := make([]byte, rapid.IntRange(1, 4000).Draw(t, "length"))
				_, _ = source.Read(data)
				if _, err := p.write[i].Write(data); err != nil {
					t.Fatal(err)
				}
				in[i] = append(in[i], data...)
			}
			want := error(nil)
			if sessions > 1 {
				x.Stop(time.Now())
				want = spool.ErrHeld
			} else {
				_, _ = p.write[0].Close(), p.write[1].Close()
			}
			x.end(t, want)
			left := -1 // All.
			if sessions > 1 {
				left = rapid.IntRange(0, 10).Draw(t, "taken")
			}
			for ; left != 0; left-- {
				chunk, err := x.Next(context.Background())
				if errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				out.take(t, x.Spool, chunk, c.ChunkBytes)
				i := int(chunk.Stream - stdout)
				marks[i].Cut = uint64(len(out[i]))
				if rapid.Bool().Draw(t, "published") {
					marks[i].Acked = marks[i].Cut
					x.Trim(chunk.Stream, marks[i].Acked)
				}
			}
			x.Close()
		}
		for i := range in {
			if !bytes.Equal(in[i], out[i]) {
				t.Errorf("stream %d: %d bytes in, %d bytes out, and they are not the same", i, len(in[i]), len(out[i]))
			}
		}
	})
}

// next wants the next chunk to be these bytes.
func (x session) next(t *testing.T, id executionv1.Stream, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	chunk, err := x.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data, err := x.Load(chunk)
	if err != nil || chunk.Stream != id || string(data) != want {
		t.Errorf("%s %q, %v, want %s %q", chunk.Stream, data, err, id, want)
	}
}

// write writes, and waits until it is captured.
func (x session) write(t *testing.T, p *process, id executionv1.Stream, text string) {
	t.Helper()
	before := x.Captured(id)
	if _, err := p.write[id-stdout].WriteString(text); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is captured", func() bool { return x.Captured(id) == before+uint64(len(text)) })
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// Streams that take turns come out as they were written, and not stream by stream.
func TestTurnsAreKept(t *testing.T) {
	t.Parallel()
	p := newProcess(t)
	defer p.close()
	c := config()
	c.FlushInterval = time.Hour
	x := open(t, c, t.TempDir(), p, [2]spool.Mark{})
	defer x.Close()
	turn := func(id executionv1.Stream, text string) {
		x.write(t, p, id, text)
		<-time.After(20 * time.Millisecond) // Slower than what is taken for one moment.
	}
	turn(stdout, "question\n")
	turn(stderr, "hint\n")
	turn(stdout, "answer\n")
	turn(stderr, "thanks\n")
	x.next(t, stdout, "question\n")
	x.next(t, stderr, "hint\n")
	x.next(t, stdout, "answer\n")
	_, _ = p.write[0].Close(), p.write[1].Close()
	x.next(t, stderr, "thanks\n")
	x.end(t, nil)
}

// A chunk goes out when it is old enough, also when nothing more comes.
func TestALineDoesNotWait(t *testing.T) {
	t.Parallel()
	p := newProcess(t)
	defer p.close()
	x := open(t, config(), t.TempDir(), p, [2]spool.Mark{})
	defer x.Close()
	x.write(t, p, stdout, "prompt> ")
	x.next(t, stdout, "prompt> ")
	x.Stop(time.Now())
	x.end(t, spool.ErrHeld)
}

// With as much waiting as there may be, the process waits in write(2), and goes on when something is published.
func TestAFullSpoolMakesTheProcessWait(t *testing.T) {
	t.Parallel()
	const limit, total = 512 << 10, 4 << 20
	p := newProcess(t)
	defer p.close()
	c := config()
	c.ChunkBytes, c.LimitBytes = 64<<10, limit
	x := open(t, c, t.TempDir(), p, [2]spool.Mark{})
	defer x.Close()
	data := make([]byte, total)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(data)
	var written atomic.Int64
	failed := make(chan error, 1)
	go func() {
		for int(written.Load()) < total {
			n, err := p.write[0].Write(data[written.Load():min(int(written.Load())+4096, total)])
			written.Add(int64(n))
			if err != nil {
				failed <- err
				return
			}
		}
		_, _ = p.write[0].Close(), p.write[1].Close()
		failed <- nil
	}()
	eventually(t, "the spool is full", func() bool { return x.Captured(stdout) >= limit })
	// What fits beside the spool: one splice and the pipe, which grows to 256 KiB.
	const most = limit + 512<<10
	eventually(t, "the process waits", func() bool {
		before := written.Load()
		<-time.After(100 * time.Millisecond)
		return written.Load() == before
	})
	if n := written.Load(); n > most {
		t.Errorf("the process wrote %d bytes with nothing published, more than %d", n, most)
	}
	var out collected
	for {
		chunk, err := x.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		out.take(t, x.Spool, chunk, c.ChunkBytes)
		x.Trim(chunk.Stream, chunk.Offset+uint64(chunk.Length))
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	x.end(t, nil)
	if !bytes.Equal(out[0], data) {
		t.Errorf("%d bytes came out, not those that were written", len(out[0]))
	}
}

// Bytes that a machine without power took along are there as a gap at the right place, so that the offsets go on.
func TestATornFileKeepsItsOffsets(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "stdout"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(config(), folder, spool.Mark{Cut: 9, Acked: 2}, spool.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := s.Captured(stdout); n != 9 {
		t.Errorf("the stream goes on at %d, not behind what was cut", n)
	}
	data, err := s.Load(spool.Chunk{Stream: stdout, Offset: 2, Length: 7})
	if err != nil || string(data) != "llo\x00\x00\x00\x00" {
		t.Errorf("%q, %v", data, err)
	}
}

// duplicate is another descriptor of the same pipe, as the worker gets it.
func duplicate(t tester, f *os.File) *os.File {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if controlErr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return os.NewFile(uintptr(fd), "pipe")
}
