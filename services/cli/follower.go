package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

// follower writes an execution's output as its facts come and remembers how it ended. A later attempt
// starts anew: its output follows and its end counts.
type follower struct {
	stdout, stderr io.Writer
	// notices, if not nil, gets a line when an attempt ends that another one follows.
	notices io.Writer
	// only, if not empty, is the one stream to write.
	only string

	attempt           uint32
	streams           map[string]*streamPosition
	sealed            map[string]uint64 // total by stream
	elided            []gap             // What the seal says was left out.
	gaps              []gap
	preparationFailed *executionv1.PreparationFailed
	startFailed       *executionv1.StartFailed
	exited            *executionv1.ProcessExited
	waitFailed        *executionv1.WaitFailed
	lost              *executionv1.RunnerLost
	leftOut           []gap
	termination       executionv1.TerminationCause
}

// maxWaitingBytes bounds what waits for earlier bytes, per stream.
const maxWaitingBytes = 32 << 20

// streamPosition is how far a stream was written.
type streamPosition struct {
	written      uint64
	waiting      []*executionv1.OutputChunk // by offset, all of them past written
	waitingBytes int
}

// gap is a range of a stream that no fact carried.
type gap struct {
	stream     string
	start, end uint64
}

func (f *follower) take(fact api.Fact) error {
	payload, err := fact.Payload()
	if err != nil {
		return err
	}
	if fact.Attempt > f.attempt {
		if err := f.finish(); err != nil {
			return err
		}
		*f = follower{stdout: f.stdout, stderr: f.stderr, notices: f.notices, only: f.only, attempt: fact.Attempt, gaps: f.gaps, leftOut: f.leftOut}
	}
	switch p := payload.(type) {
	case *executionv1.OutputChunk:
		return f.chunk(p)
	case *executionv1.ExecutionDeleted:
		return fmt.Errorf("execution %s was deleted by %s: %s", fact.Subject, cmp.Or(p.GetRequestedBy(), "somebody"), cmp.Or(p.GetReason(), "no reason was given"))
	case *executionv1.PreparationFailed:
		f.preparationFailed = p
	case *executionv1.StartFailed:
		f.startFailed = p
	case *executionv1.ProcessExited:
		f.exited = p
	case *executionv1.WaitFailed:
		f.waitFailed = p
	case *executionv1.RunnerLost:
		f.lost = p
	case *executionv1.RunnerReturned:
		f.lost = nil
	case *executionv1.RetryScheduled:
		f.follows(p)
	case *executionv1.TerminationStarted:
		if f.termination == executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED {
			f.termination = p.GetCause()
		}
	case *executionv1.OutputSealed:
		for _, s := range p.GetStreams() {
			f.seal(s)
		}
		return f.skipElided()
	}
	return nil
}

// follows says that another attempt follows.
func (f *follower) follows(p *executionv1.RetryScheduled) {
	if f.notices == nil || p.GetNextAttempt() <= f.attempt {
		return
	}
	why := strings.ToLower(strings.TrimPrefix(p.GetBecause().String(), "RETRY_ON_"))
	fmt.Fprintf(f.notices, "verbatim: attempt %d: %s, attempt %d follows at %s\n", f.attempt, why, p.GetNextAttempt(), p.GetNotBefore().AsTime().Local().Format(time.TimeOnly))
}

// seal notes a stream's total and what was left out of it. The seal that comes after late bytes says all of it again.
func (f *follower) seal(s *executionv1.StreamSeal) {
	stream := events.StreamName(s.GetStream())
	if total, sealed := f.sealed[stream]; sealed && total > s.GetCapturedBytes() {
		return
	}
	if f.sealed == nil {
		f.sealed = map[string]uint64{}
	}
	f.sealed[stream] = s.GetCapturedBytes()
	f.elided = slices.DeleteFunc(f.elided, func(g gap) bool { return g.stream == stream })
	for _, r := range s.GetElided() {
		f.elided = append(f.elided, gap{stream, r.GetStart(), r.GetEnd()})
	}
}

// skipElided lets what waits behind elided bytes go on.
func (f *follower) skipElided() error {
	for _, g := range f.elided {
		if p := f.streams[g.stream]; p != nil && g.start <= p.written && p.written < g.end {
			p.written = g.end
			if err := f.writeWaiting(g.stream, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// chunk writes the bytes that were not written yet. A chunk that comes before its turn (the facts of one
// execution are in order, unless an outside producer sends them otherwise) waits for what is before it.
func (f *follower) chunk(c *executionv1.OutputChunk) error {
	stream := events.StreamName(c.GetStream())
	if stream == "" || (f.only != "" && stream != f.only) {
		return nil
	}
	if f.streams == nil {
		f.streams = map[string]*streamPosition{}
	}
	p := f.streams[stream]
	if p == nil {
		p = &streamPosition{}
		f.streams[stream] = p
	}
	if c.GetOffset() > p.written {
		p.waiting = append(p.waiting, c)
		p.waitingBytes += len(c.GetData())
		slices.SortFunc(p.waiting, func(a, b *executionv1.OutputChunk) int { return cmp.Compare(a.GetOffset(), b.GetOffset()) })
		if p.waitingBytes > maxWaitingBytes {
			return f.skipTo(stream, p)
		}
		return nil
	}
	if err := f.write(stream, p, c); err != nil {
		return err
	}
	if err := f.writeWaiting(stream, p); err != nil || len(f.elided) == 0 {
		return err
	}
	return f.skipElided()
}

// writeWaiting writes the waiting chunks whose turn it is.
func (f *follower) writeWaiting(stream string, p *streamPosition) error {
	for len(p.waiting) > 0 && p.waiting[0].GetOffset() <= p.written {
		c := p.waiting[0]
		p.waiting, p.waitingBytes = p.waiting[1:], p.waitingBytes-len(c.GetData())
		if err := f.write(stream, p, c); err != nil {
			return err
		}
	}
	return nil
}

// skipTo gives up on the bytes before the first waiting chunk.
func (f *follower) skipTo(stream string, p *streamPosition) error {
	start := p.waiting[0].GetOffset()
	f.gaps = append(f.gaps, gap{stream, p.written, start})
	p.written = start
	return f.writeWaiting(stream, p)
}

func (f *follower) write(stream string, p *streamPosition, c *executionv1.OutputChunk) error {
	data, end := c.GetData(), c.GetOffset()+uint64(len(c.GetData()))
	if end <= p.written {
		return nil
	}
	data = data[p.written-c.GetOffset():]
	p.written = end
	w := f.stdout
	if stream == "stderr" {
		w = f.stderr
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", stream, err)
	}
	return nil
}

// finish writes what still waits, and notes what never came. It is called once, after the last fact.
func (f *follower) finish() error {
	for _, stream := range []string{"stdout", "stderr"} {
		p := f.streams[stream]
		for p != nil && len(p.waiting) > 0 {
			if err := f.skipTo(stream, p); err != nil {
				return err
			}
		}
		if f.only != "" && stream != f.only {
			continue
		}
		var written uint64
		if p != nil {
			written = p.written
		}
		if total, ok := f.sealed[stream]; ok && total > written {
			f.gaps = append(f.gaps, gap{stream, written, total})
		}
	}
	for _, out := range f.elided {
		if f.only == "" || out.stream == f.only {
			f.leftOut = append(f.leftOut, out)
		}
		var missing []gap
		for _, g := range f.gaps {
			missing = append(missing, g.without(out)...)
		}
		f.gaps = missing
	}
	return nil
}

// without returns what of a gap is not in another one.
func (g gap) without(other gap) (rest []gap) {
	if g.stream != other.stream || other.end <= g.start || g.end <= other.start {
		return []gap{g}
	}
	if g.start < other.start {
		rest = append(rest, gap{g.stream, g.start, other.start})
	}
	if other.end < g.end {
		rest = append(rest, gap{g.stream, other.end, g.end})
	}
	return rest
}

// warn says which bytes were left out and which are missing.
func (f *follower) warn(w io.Writer) {
	for _, out := range f.leftOut {
		warnLeftOut(w, out.stream, out.start, out.end)
	}
	for _, gap := range f.gaps {
		fmt.Fprintf(w, "verbatim: %s bytes %d to %d are missing\n", gap.stream, gap.start, gap.end)
	}
}

// warnLeftOut says that a range was left out on purpose.
func warnLeftOut(w io.Writer, stream string, start, end uint64) {
	fmt.Fprintf(w, "verbatim: %s: %d bytes were left out, %d to %d (run --output-limit none keeps all)\n", stream, end-start, start, end)
}
