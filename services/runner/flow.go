package runner

import (
	"context"
	"errors"
	"io"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/mask"
	"verbatim.dev/services/runner/spool"
)

// flow is the way of one stream's bytes from the spool to where they end: published, or counted and left out.
//
//	spool ── part ──► mask ── decided bytes ──┬─ of a part to publish ──► OutputChunk
//	                   └ holds back what may  └─ of a part to elide ────► digest, journal, hole in the spool
//	                     become a secret
//
// Masking holds bytes back, so what comes out of it does not end where parts do; each decided byte goes where its own part
// says. What happens to a byte is in the journal before anybody sees it, with the digests after it, so the next
// worker goes on behind the last decided byte and comes to the same.
type flow struct {
	a    *attempt
	id   executionv1.Stream
	past *streamPast
	head uint64
	// mask is nil when there is nothing to hide. decided is where the next byte that it decides stands.
	mask    *mask.Stream
	decided uint64
	// done is up to where bytes were published or elided; before it there is only the preroll.
	done  uint64
	parts []part // What was taken and is not done, ascending.
}

// part is consecutive bytes with one end.
type part struct {
	end   uint64
	elide bool
	at    time.Time
}

// flows are those of an attempt.
type flows struct {
	a      *attempt
	list   []*flow
	elided []byte // What is elided needs no memory of its own.
}

// publish passes output on until there is no more, and waits when there is no room. What masking holds back stays.
func (f *flows) publish(life context.Context) error {
	for {
		if err := f.step(life); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// step waits for the spool's next part and takes it; io.EOF when there is none.
func (f *flows) step(life context.Context) error {
	c, err := f.a.spool.Next(life)
	if err != nil {
		return err
	}
	to, err := f.of(c.Stream)
	if err != nil {
		return err
	}
	var data []byte
	switch {
	case !c.Elide:
		data = make([]byte, c.Length)
	case len(f.elided) < c.Length:
		f.elided = make([]byte, c.Length)
		fallthrough
	default:
		data = f.elided[:c.Length]
	}
	return to.take(life, c, data)
}

// flush passes on what masking holds back of the streams that are at their end. The rest is the next worker's. Of a stream that goes on
// being listened to nothing is passed on: what comes late decides whether it was the beginning of a secret, and it counts as late with it.
func (f *flows) flush(life context.Context) error {
	for _, to := range f.list {
		end, ended := f.a.spool.Ended(to.id)
		if !ended || end.Held && f.a.listens {
			continue
		}
		if err := to.flush(life); err != nil {
			return err
		}
	}
	return nil
}

// heldBack is how many of a stream's bytes were not passed on.
func (f *flows) heldBack(id executionv1.Stream) uint64 {
	for _, to := range f.list {
		if to.id == id && to.mask != nil && len(to.parts) > 0 {
			return to.parts[len(to.parts)-1].end - to.done
		}
	}
	return 0
}

func (f *flows) of(id executionv1.Stream) (*flow, error) {
	for _, known := range f.list {
		if known.id == id {
			return known, nil
		}
	}
	next, err := f.a.newFlow(id)
	if err == nil {
		f.list = append(f.list, next)
	}
	return next, err
}

func (a *attempt) newFlow(id executionv1.Stream) (*flow, error) {
	f := &flow{a: a, id: id, past: a.past.of(id)}
	f.head = a.limit().HeadFrom(f.past.mark.From)
	f.done = f.past.mark.Cut
	if a.masker.Empty() {
		return f, nil
	}
	w := a.around(id, f.done, f.done, f.done)
	f.decided, f.mask = w.from, w.stream(a.masker)
	preroll := make([]byte, f.done-f.decided)
	if err := a.spool.LoadInto(preroll, id, f.decided); err != nil { // What was published of it is in the log; only a secret may go on.
		a.log.Warn("output in front of what is next cannot be read", "stream", events.StreamName(id), "offset", f.decided, "end", f.done, "error", err)
		f.decided, f.mask = f.done, a.masker.StreamAfterHole(f.done)
		return f, nil
	}
	decided, _ := f.mask.Write(preroll)
	f.decided += uint64(len(decided))
	return f, nil
}

// take takes the next bytes of the stream. The data is this call's own when it is to be published.
func (f *flow) take(life context.Context, c spool.Chunk, data []byte) error {
	end := c.Offset + uint64(c.Length)
	if err := f.a.spool.LoadInto(data, c.Stream, c.Offset); err != nil {
		return f.lose(life, c, err)
	}
	f.a.runner.metrics.captured.WithLabelValues(events.StreamName(c.Stream)).Add(float64(len(data)))
	f.parts = append(f.parts, part{end, c.Elide, c.CapturedAt})
	if f.mask == nil {
		return f.settle(life, c.Offset, data, nil)
	}
	return f.decide(life, func() ([]byte, []mask.Range) { return f.mask.Write(data) })
}

// flush decides what masking holds back, at the end of the stream.
func (f *flow) flush(life context.Context) error {
	if f.mask == nil {
		return nil
	}
	return f.decide(life, f.mask.Close)
}

func (f *flow) decide(life context.Context, step func() ([]byte, []mask.Range)) error {
	at := f.decided
	data, masked := step()
	f.decided += uint64(len(data))
	return f.settle(life, at, data, masked)
}

// lose leaves out what cannot be read again. What was held back in front of it may be the beginning of a secret, and what comes behind it
// the rest of one, and nobody will know.
func (f *flow) lose(life context.Context, c spool.Chunk, cause error) error {
	end := c.Offset + uint64(c.Length)
	if f.mask != nil {
		at := f.decided
		held, _ := f.mask.Close()
		hide(held)
		f.decided = end
		f.mask = f.a.masker.StreamAfterHole(end)
		if err := f.settle(life, at, held, []mask.Range{{Start: at, End: at + uint64(len(held))}}); err != nil {
			return err
		}
	}
	f.a.log.ErrorContext(life, "output is lost", "stream", events.StreamName(c.Stream), "offset", c.Offset, "end", end, "error", cause)
	f.a.lose(c.Stream, c.Offset, end)
	f.a.fact(time.Now(), &executionv1.OutputReadFailed{Stream: c.Stream, Offset: c.Offset, Cause: oneLine(cause.Error())})
	f.done = end
	// The process must not wait for room that will never be given back.
	if c.Elide {
		f.a.spool.Drop(f.id, end)
	} else {
		f.a.remember(journal.Chunk{Sequence: f.a.facts.Last(), Stream: f.id, Offset: c.Offset, Length: c.Length})
	}
	return nil
}

// settle sends decided bytes where their parts say.
func (f *flow) settle(life context.Context, at uint64, data []byte, masked []mask.Range) error {
	if at < f.done {
		known := min(uint64(len(data)), f.done-at)
		at, data = at+known, data[known:]
	}
	for len(data) > 0 {
		p := f.parts[0]
		n := min(uint64(len(data)), p.end-at)
		for i := 1; i < len(f.parts) && n < uint64(len(data)) && !p.elide && !f.parts[i].elide; i++ {
			n = min(uint64(len(data)), f.parts[i].end-at)
		}
		if !p.elide {
			n = min(n, events.MaxChunkBytes)
		}
		f.count(at, at+n, masked)
		if p.elide {
			f.elide(at, data[:n])
		} else if err := f.publish(life, p.at, at, data[:n:n]); err != nil {
			return err
		}
		at, data = at+n, data[n:]
		f.done = at
		for len(f.parts) > 0 && f.parts[0].end <= at {
			f.parts = f.parts[1:]
		}
	}
	return nil
}

// count counts what was masked of the bytes from start to end.
func (f *flow) count(start, end uint64, masked []mask.Range) {
	m := &f.past.masked
	for _, r := range masked {
		from, to := max(r.Start, start), min(r.End, end)
		if from >= to {
			continue
		}
		if from != m.End || m.Ranges == 0 {
			m.Ranges++
		}
		m.Bytes += to - from
		m.End = to
	}
}

func (f *flow) publish(life context.Context, captured time.Time, at uint64, data []byte) error {
	if at+uint64(len(data)) > f.head && f.past.mark.End == nil {
		// Where the tail begins follows from where the stream ends, which must not change any more.
		end, _ := f.a.spool.Ended(f.id)
		if !end.Broken { // Else it was written down before.
			f.a.append(journal.Entry{Ended: &journal.Ended{Stream: f.id, Captured: end.Captured, Held: end.Held}})
		}
		f.past.mark.End = &end
	}
	return f.a.facts.AddWhenRoom(life, captured, &executionv1.OutputChunk{
		Stream: f.id, Offset: at, CapturedAt: timestamp(captured), Data: data,
	})
}

func (f *flow) elide(at uint64, data []byte) {
	end := at + uint64(len(data))
	f.past.add(data, false)
	start := f.past.elide(at, end)
	f.a.append(journal.Entry{Elided: &journal.Elided{
		Stream: f.id, Start: start, End: end, Whole: stateOf(f.past.whole), Masked: f.past.masked,
	}})
	f.past.mark.Cut = end
	f.a.spool.Drop(f.id, end)
}

// window is what of a stream decides how some of its bytes are published, and reaches over no lost range: behind says that it begins
// right behind one, before that it ends right before one.
type window struct {
	from, to       uint64
	behind, before bool
}

// around is the window of the bytes from start to end, of a stream that ends at there, or behind.
func (a *attempt) around(id executionv1.Stream, start, end, there uint64) window {
	reach := uint64(a.masker.Reach())
	w := window{from: start - min(start, reach), to: max(end, min(end+reach, there))}
	a.unackedMu.Lock()
	defer a.unackedMu.Unlock()
	for _, r := range a.past.of(id).lost {
		if w.from <= r.GetEnd() && r.GetEnd() <= start {
			w.from, w.behind = r.GetEnd(), true
		}
		if end <= r.GetStart() && r.GetStart() < w.to {
			w.to, w.before = r.GetStart(), true
		}
	}
	return w
}

// stream is a stream that begins where the window does.
func (w window) stream(m *mask.Masker) *mask.Stream {
	if w.behind {
		return m.StreamAfterHole(w.from)
	}
	return m.Stream(w.from)
}

// publishedAgain returns a chunk's bytes as they were published. Its checksum says what was known then: what came late may have come
// later, and what is lost around it may have been read.
func (a *attempt) publishedAgain(c journal.Chunk) ([]byte, error) {
	ends := []uint64{a.spool.Captured(c.Stream)}
	if sealed := a.past.of(c.Stream).mark.From; c.End() <= sealed {
		ends = append(ends, sealed)
	}
	for _, there := range ends {
		w := a.around(c.Stream, c.Offset, c.End(), there)
		for _, known := range []window{w, {w.from, w.to, w.behind, false}, {w.from, w.to, false, w.before}, {w.from, w.to, false, false}} {
			data, err := a.published(c, known)
			if err != nil || journal.Checksum(data) == c.CRC {
				return data, err
			}
		}
	}
	return nil, spool.ErrTornSpool
}

// published returns a chunk's bytes as a window decides them.
func (a *attempt) published(c journal.Chunk, w window) ([]byte, error) {
	data := make([]byte, w.to-w.from)
	if err := a.spool.LoadInto(data, c.Stream, w.from); err != nil || a.masker.Empty() {
		return data, err
	}
	m := w.stream(a.masker)
	masked, _ := m.Write(data)
	rest, _ := m.Close() // Behind the end, at the end of the stream, or before what is lost.
	if w.before {
		hide(rest)
	}
	return append(masked, rest...)[c.Offset-w.from : c.End()-w.from], nil
}

// hide hides all of the data.
func hide(data []byte) {
	for i := range data {
		data[i] = '*'
	}
}
