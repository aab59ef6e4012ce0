// Package spool moves the two output streams of a process from their pipes to files, and cuts them into chunks.
//
//	pipe ── splice(2) ──► file ──► open chunk ── full, old or overtaken ──► queue ──► Next ──► … published ──► Trim
//	                        └─ what is there is captured; its length is the stream's offset
//
// A byte is in the pipe or in the file, never only in the memory of this process: splice(2) takes from the pipe
// what it wrote to the file and nothing else, also when it is killed in the middle. So the file's length says exactly
// where the next worker goes on, and nothing has to be written down for that.
//
// Bytes are raw: no lines, no encodings, no limits on length. A chunk is only a place in the file until somebody
// loads it. It ends when it is full or when its first byte is Config.FlushInterval old. Chunks come in the order in which
// their first bytes were captured, of whichever stream, down to the interval; when the streams take turns more slowly
// than switchAfter it is exact.
//
// What was published is cut out of the file (Trim) by making a hole there. Of a stream that is longer than Config.Limit the
// middle is only handed out to be counted (Chunk.Elide), and then cut out too. When more than Config.LimitBytes of a stream wait,
// or maxQueue chunks, its pipe is left alone: it fills up, and the process waits in write(2). A full disk does the same.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Chunk is a place in a stream.
type Chunk struct {
	Stream executionv1.Stream
	Offset uint64
	Length int
	// CapturedAt is when the first byte came out of the pipe. Behind the head it may be a little before, and for bytes that a
	// former worker captured it is when the last of them came.
	CapturedAt time.Time
	// Elide: these bytes are not published. They are given back by Drop.
	Elide bool
}

// Config says how output is kept and cut.
type Config struct {
	// ChunkBytes is the most that a chunk carries, FlushInterval how old its first byte gets before it goes out.
	ChunkBytes    int
	FlushInterval time.Duration
	// LimitBytes is how much of a stream may wait to be published. The tail of a Limit is not counted.
	LimitBytes uint64
	// Limit, if not nil, says how much of each stream is published.
	Limit *Limit
	// StepBytes is how much is elided, and how much of the disk is given back, at once. Default 1 MiB.
	StepBytes uint64
	// Preroll is how much is kept in front of what is not published yet.
	Preroll uint64
	// HasRoom, if not nil, reports whether the disk may be filled; while it does not, the disk counts as full.
	HasRoom func() bool
	Logger  *slog.Logger
}

// Mark is how far a former worker got with a stream.
type Mark struct {
	// Cut is the offset up to which everything was published or elided, Acked up to which it is in the log.
	Cut, Acked uint64
	// From is where a Limit begins to count: what is before it was published or elided under one of its own.
	From uint64
	// End, if not nil, is the stream's end: nothing is read any more.
	End *End
}

const (
	// switchAfter is the age from which a chunk is cut when the other stream has something. It bounds the small
	// chunks of a process that writes to both in a tight loop.
	switchAfter = 5 * time.Millisecond
	// maxQueue bounds the chunks that wait, 48 bytes each.
	maxQueue = 1 << 16
	// fullWait is how often a full disk is tried again.
	fullWait = 200 * time.Millisecond
)

// ErrHeld ends a stream whose pipe was not at its end when time was up.
var ErrHeld = errors.New("the pipe is still open in another process")

// ErrTornSpool says that the spool has fewer bytes than were cut from it: the machine lost its power.
var ErrTornSpool = errors.New("the spool lost bytes")

// Spool holds both streams of one attempt.
type Spool struct {
	config Config

	mu      sync.Mutex
	streams [2]*stream
	queue   []Chunk
	open    int // Streams that are still read.
	turn    int // Of Next: who is asked first.
	changed chan struct{}
}

type stream struct {
	id   executionv1.Stream
	file store
	pipe *pipe

	// Offsets in the stream: acked <= cut <= captured. What is from cut to captured is the open chunk.
	captured, cut, acked, punched uint64
	since                         time.Time
	ends
}

// Open opens or makes the spool in a folder. What lies in the files behind the marks is queued.
func Open(c Config, folder string, stdout, stderr Mark) (*Spool, error) {
	if c.StepBytes == 0 {
		c.StepBytes = 1 << 20
	}
	s := &Spool{config: c, changed: make(chan struct{}), open: 2}
	for i, id := range []executionv1.Stream{executionv1.Stream_STREAM_STDOUT, executionv1.Stream_STREAM_STDERR} {
		mark := []Mark{stdout, stderr}[i]
		st, err := openStream(filepath.Join(folder, events.StreamName(id)), id, mark, c)
		if err != nil {
			s.Close()
			return nil, err
		}
		s.streams[i] = st
		// All that is known of when these were captured is when the last of them was.
		for left := st.opened(); left > 0; left = st.opened() {
			n := min(left, uint64(c.ChunkBytes))
			s.queue = append(s.queue, Chunk{Stream: id, Offset: st.cut, Length: int(n), CapturedAt: st.since})
			st.queued++
			st.cut += n
		}
		if st.captured > st.cut {
			st.moments = []moment{{st.cut, st.since}}
		}
	}
	return s, nil
}

// Close closes the files.
func (s *Spool) Close() {
	for _, st := range s.streams {
		if st != nil {
			st.file.close()
		}
	}
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

// Attach gives both pipes, which belong to the spool from now on. It comes before Read and Stop; without it the
// streams end where the files do.
func (s *Spool) Attach(stdout, stderr *os.File) {
	s.streams[0].pipe, s.streams[1].pipe = &pipe{file: stdout}, &pipe{file: stderr}
}

// Read moves a stream to its end (nil), until it was told to stop and the pipe was empty once (ErrHeld), until the context
// ends while there is no room (its cause), or until an error (*ReadError). It is called once for each stream, at the same
// time, and closes the pipe but after a *ReadError, when Discard comes next.
func (s *Spool) Read(ctx context.Context, id executionv1.Stream) error {
	st := s.stream(id)
	final, end := true, End{Broken: true} // Should it panic.
	defer func() {
		s.finish(st, final, end)
		if st.pipe != nil && !end.Broken {
			_ = st.pipe.file.Close()
		}
	}()
	err := s.read(ctx, st)
	var failed *ReadError
	end = End{Held: errors.Is(err, ErrHeld), Broken: errors.As(err, &failed)}
	final = err == nil || end.Held || end.Broken
	return err
}

func (s *Spool) read(ctx context.Context, st *stream) error {
	if st.pipe == nil {
		return nil
	}
	err := st.pipe.open()
	switch {
	case st.final && st.end.Broken:
		return &ReadError{Stream: st.id, Offset: st.captured, Cause: errors.New("it could not be kept before")}
	case st.final:
		return nil
	}
	for err == nil {
		if err = s.waitForRoom(ctx, st); err != nil {
			return err
		}
		if err = st.pipe.arm(s.flushAt(st)); err != nil {
			break
		}
		err = st.pipe.wait(func() error { return s.move(st) })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err = nil; st.pipe.stopped() {
				err = s.sweep(st)
			} else {
				s.flush(st)
			}
		}
		if isFull(err) {
			if err = s.waitForDisk(ctx, st, err); err != nil {
				return err
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	if errors.Is(err, ErrHeld) {
		return ErrHeld
	}
	return &ReadError{Stream: st.id, Offset: s.Captured(st.id), Cause: err}
}

// sweep takes what the pipe holds at this moment and no more, so that a process which never stops writing cannot
// keep it busy.
func (s *Spool) sweep(st *stream) error {
	left := st.pipe.waiting() + len(st.pipe.rest)
	for {
		before := s.Captured(st.id)
		if err := st.pipe.now(func() error { return s.move(st) }); errors.Is(err, errEmpty) {
			return ErrHeld
		} else if err != nil {
			return err
		}
		// One more after the last known byte, to see the end when it is there.
		if left < 0 {
			return ErrHeld
		}
		if left -= int(s.Captured(st.id) - before); left <= 0 {
			left = -1
		}
	}
}

// move moves what there is. The lock is held from before the bytes are taken until they are entered: then nobody's bytes
// can be taken earlier and be entered later.
func (s *Spool) move(st *stream) error {
	if s.config.HasRoom != nil && !s.config.HasRoom() {
		return syscall.ENOSPC
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !st.file.is() {
		if err := st.pipe.ready(); err != nil {
			return err
		}
		if err := st.file.create(); err != nil {
			return err
		}
	}
	n, err := st.pipe.splice(st.file.File, int64(st.captured))
	if n == 0 {
		return err
	}
	at := time.Now()
	if other := s.other(st); other.opened() > 0 && at.Sub(other.since) >= switchAfter {
		s.cut(other)
	}
	for left := uint64(n); left > 0; {
		k := left
		if st.captured >= st.head {
			st.note(at, s.config.ChunkBytes)
			st.captured += k
			s.wake()
		} else {
			if st.opened() == 0 {
				st.since = at
			}
			k = min(k, uint64(s.config.ChunkBytes)-st.opened(), st.head-st.captured)
			st.captured += k
			if st.opened() == uint64(s.config.ChunkBytes) || st.captured == st.head {
				s.cut(st)
			}
		}
		left -= k
	}
	return nil
}

// cut queues the stream's open chunk, and before it the other stream's when that began first.
func (s *Spool) cut(st *stream) {
	if other := s.other(st); other.opened() > 0 && other.since.Before(st.since) {
		s.enqueue(other)
	}
	s.enqueue(st)
}

func (s *Spool) enqueue(st *stream) {
	if n := st.opened(); n > 0 {
		s.queue = append(s.queue, Chunk{Stream: st.id, Offset: st.cut, Length: int(n), CapturedAt: st.since})
		st.cut += n
		st.queued++
		s.wake()
	}
}

// flush queues what is old enough.
func (s *Spool) flush(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.opened() > 0 && time.Since(st.since) >= s.config.FlushInterval {
		s.cut(st)
	}
}

func (s *Spool) flushAt(st *stream) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.opened() == 0 {
		return time.Time{}
	}
	return st.since.Add(s.config.FlushInterval)
}

// finish ends a stream. final says that there will be no more of it, also not for the next worker.
func (s *Spool) finish(st *stream, final bool, end End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut(st)
	if final && !st.final {
		end.Captured = st.captured
		st.end, st.final = end, true
	}
	s.open--
	s.wake()
}

// waitForRoom waits until something of what waits is published, when too much does.
func (s *Spool) waitForRoom(ctx context.Context, st *stream) error {
	var slow <-chan time.Time
	var gone uint64 // What was published or elided when slow was set.
	for {
		s.mu.Lock()
		if st.room(s.config.LimitBytes, s.config.StepBytes) && len(s.queue) < maxQueue {
			s.mu.Unlock()
			return nil
		}
		s.cut(st)
		if now := st.acked + st.dropped; st.captured >= st.head && (slow == nil || now > gone) {
			slow, gone = time.After(slackWait), now
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-slow:
			s.mu.Lock()
			st.patient = true
			s.mu.Unlock()
		case <-ctx.Done():
			return fmt.Errorf("wait for room in the spool: %w", context.Cause(ctx))
		}
	}
}

// waitForDisk waits a moment for room on the disk.
func (s *Spool) waitForDisk(ctx context.Context, st *stream, full error) error {
	if st.pipe.complain() {
		s.config.Logger.WarnContext(ctx, "no room for the spool, the process has to wait", "stream", events.StreamName(st.id), "error", full)
	}
	s.mu.Lock()
	s.cut(st)
	for _, st := range s.streams {
		st.giveBack(s.config.Preroll, 1) // There may be nothing more to come that would give back a whole step.
	}
	s.mu.Unlock()
	select {
	case <-time.After(fullWait):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for room on the disk: %w", context.Cause(ctx))
	}
}

func (s *Spool) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Next waits for the next chunk; io.EOF when there will be no more.
func (s *Spool) Next(ctx context.Context) (Chunk, error) {
	for {
		s.mu.Lock()
		if c, ok := s.next(); ok {
			s.mu.Unlock()
			return c, nil
		}
		open, changed := s.open, s.changed
		s.mu.Unlock()
		if open == 0 {
			return Chunk{}, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Chunk{}, context.Cause(ctx)
		}
	}
}

// next takes turns between the queue and what is behind the head of each stream, so that none of them waits for ever.
func (s *Spool) next() (Chunk, bool) {
	for range len(s.streams) + 1 {
		s.turn = (s.turn + 1) % (len(s.streams) + 1)
		if s.turn < len(s.streams) {
			if c, ok := s.streams[s.turn].behind(s.config.ChunkBytes, s.config.StepBytes); ok {
				return c, true
			}
		} else if len(s.queue) > 0 {
			c := s.queue[0]
			s.queue = s.queue[1:]
			s.stream(c.Stream).queued--
			if len(s.queue) == maxQueue-1 {
				s.wake()
			}
			return c, true
		}
	}
	return Chunk{}, false
}

// Trim says that everything of a stream below the offset is published.
func (s *Spool) Trim(id executionv1.Stream, offset uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(id)
	if offset <= st.acked {
		return
	}
	st.acked = offset
	s.wake()
	st.giveBack(s.config.Preroll, s.config.StepBytes)
}

// giveBack gives the disk back what is published or elided but for the preroll, when that is so much at least.
func (st *stream) giveBack(preroll, step uint64) {
	upTo := func(offset uint64, punched *uint64) {
		if end := offset - min(offset, preroll); end > *punched && end-*punched >= step {
			st.file.punch(int64(*punched), int64(end))
			*punched = end
		}
	}
	upTo(st.acked, &st.punched)
	upTo(st.dropped, &st.dropPunched)
}

// Stop lets both streams end at the given time: what the pipes hold then is taken, and a pipe that is not at its
// end counts as still held. The earliest time holds.
func (s *Spool) Stop(at time.Time) {
	for _, st := range s.streams {
		if st.pipe != nil {
			st.pipe.stopAt(at)
		}
	}
}

// Captured is how many bytes of a stream came out of its pipe.
func (s *Spool) Captured(id executionv1.Stream) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream(id).captured
}

func (s *Spool) stream(id executionv1.Stream) *stream {
	if id == executionv1.Stream_STREAM_STDERR {
		return s.streams[1]
	}
	return s.streams[0]
}

func (s *Spool) other(st *stream) *stream {
	if st == s.streams[0] {
		return s.streams[1]
	}
	return s.streams[0]
}
