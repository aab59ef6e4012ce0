// Package output reads the two output streams of a process and cuts them into chunks.
//
// Bytes are raw: there are no lines, no encodings and no limits on length. Both streams are read at the
// same time, each by the goroutine that calls Read, from before anything is written to the process. A stream that
// is silent costs no buffer: one is borrowed when the kernel says that there is something to read.
//
// A chunk ends when it is full (Config.ChunkBytes) or when its first byte is Config.FlushInterval old, so a
// line is on its way within that time. Chunks go to the Sink one at a time, and never is one handed over before another whose
// first byte was read earlier, of whichever stream. So the order of the chunks is the capture order, down to
// the interval. When the streams take turns more slowly than switchAfter, it is exact: a chunk of the other stream that
// is older than that is cut at the turn.
//
// A Sink that waits (nothing acknowledges, no room) stops both streams. Then the pipes fill up and the
// process waits in write(2). That is the back-pressure, and it is why memory does not grow.
//
//	pipe ── Read ──► pending (one per stream) ── full, old or overtaken ──► Sink
//
// A read error ends its stream, and is remembered with its offset. What the kernel still held then is listed
// as lost, and so is what the Sink refused.
package output

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Chunk is consecutive bytes of one stream.
type Chunk struct {
	Stream executionv1.Stream
	// Offset of the first byte in its stream.
	Offset uint64
	// CapturedAt is when the first byte was read.
	CapturedAt time.Time
	// Data belongs to the Capture: a Sink that keeps it must copy it.
	Data []byte
}

// Sink takes chunks, one at a time and in order. It may wait for as long as it likes. An error means that
// the chunk is lost; the Capture counts it as that and goes on.
type Sink func(Chunk) error

// Config says how output is cut.
type Config struct {
	// ChunkBytes is the most that a chunk carries, in bytes.
	ChunkBytes int
	// FlushInterval is how old a chunk's first byte gets before the chunk goes out.
	FlushInterval time.Duration
}

// switchAfter is the age from which a chunk is cut when the other stream has something. It bounds the small chunks
// that a process which writes to both in a tight loop can cause: at most one per stream in this time.
const switchAfter = 5 * time.Millisecond

// Capture holds the two streams of one process.
type Capture struct {
	config Config
	sink   Sink

	mu      sync.Mutex // Held while the Sink waits: then nothing is read.
	streams [2]*stream
}

// stream is one output. What is below mu belongs to Capture.mu.
type stream struct {
	pipe
	id executionv1.Stream

	pending []byte
	since   time.Time // When pending's first byte was read.

	captured, published uint64
	digest              hash.Hash // Of the published bytes.
	lost                []*executionv1.ByteRange
	held                bool
}

// New prepares a capture of the read ends of two pipes, which it owns from now on.
func New(c Config, stdout, stderr *os.File, sink Sink) *Capture {
	return &Capture{config: c, sink: sink, streams: [2]*stream{
		{pipe: pipe{file: stdout}, id: executionv1.Stream_STREAM_STDOUT, digest: sha256.New()},
		{pipe: pipe{file: stderr}, id: executionv1.Stream_STREAM_STDERR, digest: sha256.New()},
	}}
}

// ReadError says that a stream could not be read further.
type ReadError struct {
	Stream executionv1.Stream
	// Offset of the first byte that is not known.
	Offset uint64
	Cause  error
}

func (e *ReadError) Error() string {
	return fmt.Sprintf("read %s at offset %d: %v", e.Stream, e.Offset, e.Cause)
}

func (e *ReadError) Unwrap() error { return e.Cause }

// Read reads a stream until its end, until it was told to stop and the pipe was empty once, or until an error,
// which it returns as a *ReadError. It hands over everything that it read, and closes the pipe.
// It is called once for each stream, at the same time.
func (c *Capture) Read(id executionv1.Stream) error {
	s := c.stream(id)
	defer s.file.Close()
	take := func(data []byte) { c.take(s, data, time.Now()) }
	err := s.open()
	for err == nil {
		s.arm(c.flushAt(s))
		_, err = s.read(&c.mu, take)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err = nil; s.stopped() {
				err = c.sweep(s, take)
			} else {
				c.flush(s)
			}
		}
	}
	return c.finish(s, err)
}

// errHeld ends a stream whose pipe was empty and not at its end when time was up.
var errHeld = errors.New("the pipe is still open in another process")

// sweep takes what the pipe holds at this moment and no more, so that a process which never stops writing
// cannot keep it busy.
func (c *Capture) sweep(s *stream, take func([]byte)) error {
	for left, last := s.waiting(), false; ; {
		n, err := s.readNow(&c.mu, take)
		switch {
		case errors.Is(err, errEmpty):
			return errHeld
		case err != nil:
			return err
		case last:
			return errHeld
		}
		// One more read after the last known byte, to see the end when it is there.
		left -= n
		last = left <= 0
	}
}

// finish hands over the rest and writes down how the stream ended.
func (c *Capture) finish(s *stream, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.emit(s)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, errHeld):
		s.held = true
		return nil
	}
	failed := &ReadError{Stream: s.id, Offset: s.captured, Cause: err}
	if known := uint64(max(s.waiting(), 0)); known > 0 {
		s.lose(known)
	}
	return failed
}

// take appends what was read and hands over what became full. Its caller holds the lock.
func (c *Capture) take(s *stream, data []byte, at time.Time) {
	if other := c.other(s); len(other.pending) > 0 && at.Sub(other.since) >= switchAfter {
		c.emit(other)
	}
	for len(data) > 0 {
		if len(s.pending) == 0 {
			s.since = at
		}
		n := min(len(data), c.config.ChunkBytes-len(s.pending))
		s.pending = append(s.pending, data[:n]...)
		s.captured += uint64(n)
		if data = data[n:]; len(s.pending) == c.config.ChunkBytes {
			c.emit(s)
		}
	}
}

// flush hands over what is old enough.
func (c *Capture) flush(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(s.pending) > 0 && time.Since(s.since) >= c.config.FlushInterval {
		c.emit(s)
		s.pending = nil // The stream is slow: keep no full-size buffer for it.
	}
}

// flushAt is when the stream's pending bytes must go out; zero when there are none.
func (c *Capture) flushAt(s *stream) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(s.pending) == 0 {
		return time.Time{}
	}
	return s.since.Add(c.config.FlushInterval)
}

// emit hands over the stream's pending bytes, and before them the other stream's when those came first.
func (c *Capture) emit(s *stream) {
	if len(s.pending) == 0 {
		return
	}
	if other := c.other(s); len(other.pending) > 0 && other.since.Before(s.since) {
		c.hand(other)
	}
	c.hand(s)
}

func (c *Capture) hand(s *stream) {
	n := uint64(len(s.pending))
	chunk := Chunk{Stream: s.id, Offset: s.captured - n, CapturedAt: s.since, Data: s.pending}
	if err := c.sink(chunk); err != nil {
		s.listLost(chunk.Offset, chunk.Offset+n)
	} else {
		s.published += n
		s.digest.Write(s.pending)
	}
	s.pending = s.pending[:0]
}

// Stop lets both streams end at the given time: what the pipes hold then is read, and a pipe that is not at
// its end counts as still held. The earliest time that was given holds.
func (c *Capture) Stop(at time.Time) {
	for _, s := range c.streams {
		s.stopAt(at)
	}
}

// Seal states the totals. It is for after both Reads have returned.
func (c *Capture) Seal() []*executionv1.StreamSeal {
	c.mu.Lock()
	defer c.mu.Unlock()
	seals := make([]*executionv1.StreamSeal, len(c.streams))
	for i, s := range c.streams {
		seal := &executionv1.StreamSeal{
			Stream: s.id, CapturedBytes: s.captured, PublishedBytes: s.published,
			PublishedSha256: s.digest.Sum(nil), PipeStillHeld: s.held, Lost: s.lost,
		}
		if len(s.lost) == 0 {
			seal.Sha256 = seal.PublishedSha256 // The same bytes: nothing is changed or left out here.
		}
		seals[i] = seal
	}
	return seals
}

// EmptySeal is the seal of an attempt whose process never started.
func EmptySeal() []*executionv1.StreamSeal {
	return New(Config{}, nil, nil, nil).Seal()
}

func (c *Capture) stream(id executionv1.Stream) *stream {
	if id == executionv1.Stream_STREAM_STDERR {
		return c.streams[1]
	}
	return c.streams[0]
}

func (c *Capture) other(s *stream) *stream {
	if s == c.streams[0] {
		return c.streams[1]
	}
	return c.streams[0]
}

// lose counts bytes that are known to exist and cannot be had.
func (s *stream) lose(n uint64) {
	s.listLost(s.captured, s.captured+n)
	s.captured += n
}

func (s *stream) listLost(start, end uint64) {
	if last := len(s.lost) - 1; last >= 0 && s.lost[last].GetEnd() == start {
		s.lost[last].End = end
		return
	}
	s.lost = append(s.lost, &executionv1.ByteRange{Start: start, End: end})
}

// Captured is how many bytes of a stream were read so far.
func (c *Capture) Captured(id executionv1.Stream) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream(id).captured
}
