package execution

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/projections/internal/interval"
)

// The stored form of a State: formatVersion, the parts in the order of marshal.go as varints and
// length-prefixed bytes, CRC-32 (IEEE) of all that, little endian. Texts that repeat are written once and
// then named by their number. A form that this binary does not know is an error; the state is then
// rebuilt from the archive.
//
// The first and last bytes of a stream mostly stand in the row's preview too. Then they are not written a second time: a
// window says where in the preview its bytes are (see beside.go). Form 1 had the bytes always; forms 1 and 2 have no RunnerReturned and no
// RetryScheduled, forms 1 to 3 one seal alone, forms 1 to 4 no changes.
const (
	formatVersion = 5
	oldestVersion = 1
)

// ErrState is in the chain of every error of Load.
var ErrState = errors.New("stored execution state")

type writer struct {
	b     []byte
	texts map[string]uint64
	// beside are the previews that will stand beside the state, of the streams of the latest attempt.
	beside [streamCount]*string
}

func (w *writer) uint(v uint64)  { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) bytes(b []byte) { w.uint(uint64(len(b))); w.b = append(w.b, b...) }

func (w *writer) bool(v bool) {
	if v {
		w.uint(1)
	} else {
		w.uint(0)
	}
}

func (w *writer) text(s string) {
	if n, ok := w.texts[s]; ok {
		w.uint(n)
		return
	}
	w.uint(uint64(len(w.texts)))
	w.texts[s] = uint64(len(w.texts))
	w.bytes([]byte(s))
}

func (w *writer) time(t time.Time) {
	w.bool(!t.IsZero())
	if !t.IsZero() {
		w.b = binary.AppendVarint(w.b, t.UnixNano())
	}
}

// set writes ranges as distances, which are small.
func (w *writer) set(s *interval.Set) {
	w.uint(uint64(len(s.Ranges())))
	at := uint64(0)
	for _, r := range s.Ranges() {
		w.uint(r.Start - at)
		w.uint(r.Len())
		at = r.End
	}
}

func (w *writer) origin(o origin) { w.text(o.source); w.uint(o.sequence) }

// window writes a window; at is the place of its bytes in the preview, negative when they have to be written.
func (w *writer) window(v *window, at int) {
	w.set(&v.clash)
	w.uint(uint64(len(v.segments)))
	if len(v.segments) == 0 {
		return
	}
	w.bool(at >= 0)
	if at >= 0 {
		w.uint(uint64(at))
	}
	sum := uint32(0)
	for _, g := range v.segments {
		w.uint(g.offset)
		w.origin(g.from)
		if at < 0 {
			w.bytes(g.data)
			continue
		}
		w.uint(uint64(len(g.data)))
		sum = crc32.Update(sum, crc32.IEEETable, g.data)
	}
	if at >= 0 {
		w.b = binary.LittleEndian.AppendUint32(w.b, sum)
	}
}

func writeFact[M proto.Message](w *writer, f fact[M]) {
	w.origin(f.origin)
	w.time(f.at)
	w.bytes(marshal(f.data))
}

func writeSlot[M proto.Message](w *writer, s *slot[M]) {
	w.bool(s.set)
	if s.set {
		w.bool(s.differs)
		writeFact(w, s.fact)
	}
}

func writeLog[M proto.Message](w *writer, l *log[M]) {
	w.uint(uint64(len(l.facts)))
	for _, f := range l.facts {
		writeFact(w, f)
	}
}

// reader reads what writer wrote. After the first error everything it returns is zero, so a caller looks
// at err once, at the end, and after every count it loops on.
type reader struct {
	b      []byte
	form   uint64
	texts  []string
	beside [streamCount]*string
	err    error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrState, what)
	}
	r.b = nil
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("cut short")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many things follow; each takes at least one byte, so a larger number is a lie.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail("a count is larger than what follows")
		return 0
	}
	return int(n)
}

func (r *reader) bytes() []byte {
	n := r.count()
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) bool() bool { return r.uint() == 1 }

func (r *reader) text() string {
	n := r.uint()
	switch {
	case n < uint64(len(r.texts)):
		return r.texts[n]
	case n > uint64(len(r.texts)):
		r.fail("a text's number is too large")
		return ""
	}
	s := string(r.bytes())
	r.texts = append(r.texts, s)
	return s
}

func (r *reader) time() time.Time {
	if !r.bool() {
		return time.Time{}
	}
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("cut short")
		return time.Time{}
	}
	r.b = r.b[n:]
	t := time.Unix(0, v).UTC()
	if usable(t).IsZero() {
		r.fail("a time is outside what a row can hold")
	}
	return t
}

func (r *reader) set(s *interval.Set) {
	at := uint64(0)
	for range r.count() {
		start := at + r.uint()
		end := start + r.uint()
		if start < at || end <= start || at > 0 && start == at {
			r.fail("ranges are not ascending")
			return
		}
		s.Add(interval.Range{Start: start, End: end}, 0)
		at = end
	}
}

func (r *reader) origin() origin { return origin{source: r.text(), sequence: r.uint()} }

// window reads a window of the stream that beside, which may be nil, is the preview of.
func (r *reader) window(v *window, beside *string) {
	r.set(&v.clash)
	count := r.count()
	if count == 0 {
		return
	}
	bytes, sum := r.bytes, func() {}
	if r.form > oldestVersion && r.bool() {
		bytes, sum = r.besides(beside)
	}
	at := uint64(0)
	for range count {
		g := segment{offset: r.uint(), from: r.origin()}
		g.data = append([]byte(nil), bytes()...)
		if len(g.data) == 0 || g.offset < at || g.end() < g.offset {
			r.fail("kept bytes are not ascending")
			return
		}
		v.segments = append(v.segments, g)
		at = g.end()
	}
	sum()
}

// besides returns what gives the bytes of one segment after the other from a preview, and what checks them at the end.
func (r *reader) besides(beside *string) (bytes func() []byte, check func()) {
	left, sum := "", uint32(0)
	if at := r.uint(); beside != nil && at <= uint64(len(*beside)) {
		left = (*beside)[at:]
	}
	bytes = func() []byte {
		n := r.uint()
		if n > uint64(len(left)) {
			r.fail("kept bytes do not stand in the row")
			return nil
		}
		b := []byte(left[:n])
		left, sum = left[n:], crc32.Update(sum, crc32.IEEETable, b)
		return b
	}
	check = func() {
		if len(r.b) < 4 || binary.LittleEndian.Uint32(r.b) != sum {
			r.fail("kept bytes are not those that stand in the row")
			return
		}
		r.b = r.b[4:]
	}
	return bytes, check
}

func readFact[M proto.Message](r *reader) fact[M] {
	var zero M
	f := fact[M]{origin: r.origin(), at: r.time()}
	f.data = zero.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(r.bytes(), f.data); err != nil {
		r.fail("a fact cannot be decoded: " + err.Error())
	}
	return f
}

func readSlot[M proto.Message](r *reader, s *slot[M]) {
	if s.set = r.bool(); s.set {
		s.differs = r.bool()
		s.fact = readFact[M](r)
	}
}

func readLog[M proto.Message](r *reader, l *log[M]) {
	for range min(r.count(), maxLog) {
		l.facts = append(l.facts, readFact[M](r))
	}
}

func appendChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// checked returns b without its checksum.
func checked(b []byte) ([]byte, error) {
	if len(b) < 5 {
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrState, len(b))
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrState)
	}
	return body, nil
}
