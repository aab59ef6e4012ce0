package execution

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"fmt"
	"maps"
	"slices"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/internal/interval"
)

// MarshalBinary returns everything that is needed to go on folding. Equal histories give equal bytes.
func (s *State) MarshalBinary() ([]byte, error) {
	return s.marshal(&writer{texts: map[string]uint64{}})
}

func (s *State) marshal(w *writer) ([]byte, error) {
	if s.Deleted() {
		return s.marshalDeleted(w), nil
	}
	w.uint(formatVersion)
	w.bytes([]byte(s.id))
	w.seen(&s.seen)
	w.counts(s.facts)
	w.counts(s.others)
	w.uint(s.unknown)
	w.bool(s.limited)
	w.uint(s.changes)
	writeSlot(w, &s.requested)
	writeSlot(w, &s.cancelled)
	w.set(&s.numbers)
	w.uint(uint64(len(s.attempts)))
	latest := s.latest()
	for _, n := range slices.Sorted(maps.Keys(s.attempts)) {
		if err := w.attempt(s.attempts[n], s.attempts[n] == latest); err != nil {
			return nil, fmt.Errorf("encode state of execution %s: %w", s.id, err)
		}
	}
	return appendChecksum(w.b), nil
}

// Load is the inverse of MarshalBinary. Bytes that it did not write give an error with ErrState in its chain.
func Load(b []byte) (*State, error) { return load(b, &reader{}) }

func load(b []byte, r *reader) (*State, error) {
	body, err := checked(b)
	if err != nil {
		return nil, err
	}
	r.b = body
	r.form = r.uint()
	if r.form == deletedFormat || r.form == oneDeletedFormat {
		return loadDeleted(r)
	}
	if r.form < oldestVersion || r.form > formatVersion {
		return nil, fmt.Errorf("%w: form %d is not known here, those from %d to %d are", ErrState, r.form, oldestVersion, formatVersion)
	}
	s := New(string(r.bytes()))
	r.seen(&s.seen)
	r.counts(s.facts)
	r.counts(s.others)
	s.unknown = r.uint()
	s.limited = r.bool()
	if r.form >= 5 {
		s.changes = r.uint()
	}
	readSlot(r, &s.requested)
	readSlot(r, &s.cancelled)
	r.set(&s.numbers)
	for range min(r.count(), keptAttempts) {
		a := r.attempt()
		s.attempts[a.number] = a
		for i := range a.streams {
			s.waiting += a.streams[i].digest.waitingBytes()
		}
		a.seal(&s.waiting)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes are left over")
	}
	if r.err != nil {
		return nil, r.err
	}
	return s, nil
}

func (w *writer) seen(s *Seen) {
	all := s.sorted()
	w.uint(uint64(len(all)))
	for _, p := range all {
		w.uint(uint64(p.key.attempt))
		w.text(p.key.source)
		w.text(p.key.name)
		w.set(&p.sequences)
	}
	w.uint(uint64(len(s.foreign)))
	for _, f := range s.foreign {
		w.b = append(w.b, f.hash[:]...)
		w.text(f.typ)
		w.bool(f.unknown)
	}
}

func (r *reader) seen(s *Seen) {
	for range r.count() {
		k := producerKey{attempt: uint32(r.uint()), source: r.text(), name: r.text()}
		p := s.producer(k)
		if p == nil || !p.sequences.Empty() {
			r.fail("producers are too many or not distinct")
			return
		}
		r.set(&p.sequences)
		s.counted += p.sequences.Len()
	}
	for range r.count() {
		var f foreignID
		if len(r.b) < len(f.hash) {
			r.fail("cut short")
			return
		}
		r.b = r.b[copy(f.hash[:], r.b):]
		f.typ, f.unknown = r.text(), r.bool()
		if n := len(s.foreign); n >= maxForeign || n > 0 && bytes.Compare(s.foreign[n-1].hash[:], f.hash[:]) >= 0 {
			r.fail("foreign ids are too many or not ascending")
			return
		}
		s.foreign = append(s.foreign, f)
	}
}

func (w *writer) counts(m map[string]uint64) {
	w.uint(uint64(len(m)))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		w.text(name)
		w.uint(m[name])
	}
}

func (r *reader) counts(m map[string]uint64) {
	for range min(r.count(), maxUnknownTypes) {
		name := r.text()
		m[name] = r.uint()
	}
}

func (w *writer) attempt(a *attempt, latest bool) error {
	w.uint(uint64(a.number))
	writeSlot(w, &a.prepared)
	writeSlot(w, &a.preparationFailed)
	writeSlot(w, &a.started)
	writeSlot(w, &a.startFailed)
	writeSlot(w, &a.stdinFailed)
	writeSlot(w, &a.exited)
	writeSlot(w, &a.waitFailed)
	writeSlot(w, &a.recorded)
	writeSlot(w, &a.lost)
	writeSlot(w, &a.returned)
	writeSlot(w, &a.retry)
	writeLog(w, &a.seals)
	writeLog(w, &a.readFailures)
	writeLog(w, &a.terminations)
	for i := range a.streams {
		s := &a.streams[i]
		w.set(&s.received)
		w.set(&s.twice)
		head, tail := -1, -1
		if latest && w.beside[i] != nil {
			head, tail = s.locate(*w.beside[i])
		}
		w.window(&s.head, head)
		w.window(&s.tail, tail)
		if err := w.digest(&s.digest); err != nil {
			return fmt.Errorf("attempt %d: %s: %w", a.number, streamNames[i], err)
		}
	}
	return nil
}

func (r *reader) attempt() *attempt {
	a := &attempt{number: uint32(r.uint())}
	readSlot(r, &a.prepared)
	readSlot(r, &a.preparationFailed)
	readSlot(r, &a.started)
	readSlot(r, &a.startFailed)
	readSlot(r, &a.stdinFailed)
	readSlot(r, &a.exited)
	readSlot(r, &a.waitFailed)
	if r.form < 4 {
		r.oneSeal(&a.seals)
	}
	readSlot(r, &a.recorded)
	readSlot(r, &a.lost)
	if r.form >= 3 {
		readSlot(r, &a.returned)
		readSlot(r, &a.retry)
	}
	if r.form >= 4 {
		readLog(r, &a.seals)
		a.seals.facts = a.seals.facts[:min(len(a.seals.facts), maxSeals)]
	}
	readLog(r, &a.readFailures)
	readLog(r, &a.terminations)
	for _, f := range a.readFailures.facts {
		if streamIndex(f.data.GetStream()) < 0 {
			r.fail("a read failure has no known stream")
		}
	}
	for i := range a.streams {
		s := &a.streams[i]
		r.set(&s.received)
		r.set(&s.twice)
		if rs := s.received.Ranges(); len(rs) > 0 {
			s.end = rs[len(rs)-1].End
		}
		r.window(&s.head, r.beside[i])
		r.window(&s.tail, r.beside[i])
		if s.keptPast(s.end) {
			r.fail("kept bytes were never received")
		}
		r.digest(&s.digest)
		for _, g := range s.digest.waiting {
			if len(s.received.Without(interval.Range{Start: g.offset, End: g.end()})) > 0 {
				r.fail("waiting bytes were never received")
			}
		}
	}
	return a
}

// oneSeal reads what older forms have of seals. Whether two that differ can both be true, they do not know.
func (r *reader) oneSeal(into *log[*executionv1.OutputSealed]) {
	var s slot[*executionv1.OutputSealed]
	if readSlot(r, &s); s.differs {
		r.fail("a form that had room for one seal had two")
	} else if s.set {
		into.facts = append(into.facts, s.fact)
	}
}

// keptPast says whether bytes are kept where none can be.
func (s *stream) keptPast(end uint64) bool {
	h, t := s.head.segments, s.tail.segments
	return len(h) > 0 && h[len(h)-1].end() > min(end, headBytes) ||
		len(t) > 0 && (t[0].offset < s.tailStart() || t[len(t)-1].end() > end)
}

func (w *writer) digest(d *digest) error {
	w.bool(d.gone)
	w.uint(d.at)
	w.uint(uint64(len(d.waiting)))
	for _, g := range d.waiting {
		w.uint(g.offset)
		w.bytes(g.data)
	}
	w.bool(d.hash != nil)
	if d.hash == nil {
		return nil
	}
	b, err := d.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return fmt.Errorf("encode running digest: %w", err)
	}
	w.bytes(b)
	return nil
}

func (r *reader) digest(d *digest) {
	d.gone = r.bool()
	d.at = r.uint()
	at, total := d.at, 0
	for range r.count() {
		g := segment{offset: r.uint()}
		g.data = append([]byte(nil), r.bytes()...)
		if total += len(g.data); len(g.data) == 0 || g.offset < at || g.end() < g.offset || total > MaxWaitingBytes {
			r.fail("waiting bytes are not ascending or too many")
			return
		}
		d.waiting = append(d.waiting, g)
		at = g.end()
	}
	if r.bool() {
		d.hash = sha256.New()
		if err := d.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.bytes()); err != nil {
			r.fail("the running digest cannot be decoded: " + err.Error())
		}
	}
}
