package spool

import (
	"math"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Limit says how much of a stream is published when it is long: its first Head and its last Tail bytes.
//
// The head is cut as it comes. What is behind it cannot be cut before it is known where the stream ends, so that stays in the file;
// when it is more than the tail may be, the bytes in front are handed out to be elided, and given back by Drop. So a stream of
// any length takes the tail and slackSteps of the disk.
type Limit struct{ Head, Tail uint64 }

const (
	// slackSteps is how many Config.StepBytes more than the tail may wait for being elided; with more the process has to wait. It
	// may be up to Config.LimitBytes when nothing is elided for slackWait: then the log is away, and what is in front waits for that.
	slackSteps = 4
	slackWait  = 5 * time.Second
)

// moment says when a byte behind the head was captured.
type moment struct {
	offset uint64
	at     time.Time
}

// ends is what is known of a stream behind its head.
type ends struct {
	head, tail uint64
	// dropped is up to where bytes behind the head were given back, dropPunched up to where a hole was made for them.
	dropped, dropPunched uint64
	// moments are ascending and reach back to the cut, one for about half a chunk.
	moments []moment
	// queued is how many of the stream's chunks wait in the queue.
	queued int
	// patient says that slackWait has passed.
	patient bool

	end   End
	final bool
}

// End says how a stream ended.
type End struct {
	// Captured is the stream's length.
	Captured uint64
	// Held: another process has the pipe.
	Held bool
	// Broken: the stream could not be read or written further. What comes can only be counted (Discard).
	Broken bool
}

// HeadFrom is where the head ends of a stream of which the limit counts from an offset on; nil has no end.
func (l *Limit) HeadFrom(offset uint64) uint64 {
	if l == nil || l.Head > math.MaxUint64-offset {
		return math.MaxUint64
	}
	return offset + l.Head
}

func (l *Limit) ends(m Mark, preroll uint64) ends {
	e := ends{head: math.MaxUint64}
	if l != nil {
		e.head, e.tail = l.HeadFrom(m.From), l.Tail
	}
	e.dropped = max(m.Cut, e.head)
	if e.dropPunched = e.head + preroll; e.dropPunched < e.head {
		e.dropPunched = math.MaxUint64
	}
	return e
}

// opened is the length of the open chunk.
func (st *stream) opened() uint64 {
	if end := min(st.captured, st.head); end > st.cut {
		return end - st.cut
	}
	return 0
}

// note remembers when the next byte was captured, which is behind the head.
func (st *stream) note(at time.Time, chunkBytes int) {
	if n := len(st.moments); n == 0 || st.captured-st.moments[n-1].offset >= uint64(chunkBytes/2) {
		st.moments = append(st.moments, moment{st.captured, at})
	}
}

// forget drops the moments that lie before the cut, all but the last of them.
func (st *stream) forget() {
	n := 0
	for n+1 < len(st.moments) && st.moments[n+1].offset <= st.cut {
		n++
	}
	st.moments = st.moments[n:]
}

// behind is the next part behind the head: to be elided, or, when the end is known, a chunk of the tail.
func (st *stream) behind(chunkBytes int, step uint64) (Chunk, bool) {
	if st.cut < st.head || st.queued > 0 {
		return Chunk{}, false
	}
	c := Chunk{Stream: st.id, Offset: st.cut, CapturedAt: st.since}
	if len(st.moments) > 0 {
		c.CapturedAt = st.moments[0].at
	}
	until := st.captured - min(st.captured, st.tail)
	switch {
	case st.cut < until && (st.final || until-st.cut >= step):
		c.Elide, c.Length = true, int(min(until-st.cut, step))
	case st.final && st.cut < st.captured:
		c.Length = int(min(st.captured-st.cut, uint64(chunkBytes)))
		if len(st.moments) > 1 {
			c.Length = int(min(uint64(c.Length), st.moments[1].offset-st.cut))
		}
	default:
		return Chunk{}, false
	}
	st.cut += uint64(c.Length)
	st.forget()
	return c, true
}

// room says whether more may be captured.
func (st *stream) room(limit, step uint64) bool {
	if st.captured < st.head {
		return st.captured-st.acked < limit
	}
	waits, most := st.captured-max(st.dropped, st.head), st.tail+slackSteps*step
	if waits < most {
		st.patient = false
		return true
	}
	return st.patient && waits < max(limit, most)
}

// Drop says that what a stream has between its head and the offset is elided.
func (s *Spool) Drop(id executionv1.Stream, offset uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(id)
	if offset <= st.dropped {
		return
	}
	st.dropped = offset
	s.wake()
	st.giveBack(s.config.Preroll, s.config.StepBytes)
}

// Ended says how a stream ended; false as long as that is not known.
func (s *Spool) Ended(id executionv1.Stream) (End, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(id)
	return st.end, st.final
}
