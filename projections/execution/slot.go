package execution

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// origin says which fact something came from, and orders facts when one must be picked.
type origin struct {
	source   string
	sequence uint64
}

func (o origin) compare(p origin) int {
	return cmp.Or(cmp.Compare(o.source, p.source), cmp.Compare(o.sequence, p.sequence))
}

// fact is one observation: who said what, and when it happened (zero: nobody knows).
type fact[M proto.Message] struct {
	origin
	at   time.Time
	data M
}

// compare orders facts by origin, and two contents of one origin by their bytes.
func (f fact[M]) compare(g fact[M]) int {
	if c := f.origin.compare(g.origin); c != 0 {
		return c
	}
	if proto.Equal(f.data, g.data) {
		return 0
	}
	return bytes.Compare(marshal(f.data), marshal(g.data))
}

// slot holds one fact of a kind. Of several it keeps the smallest; differs remembers that there were
// different contents, which is a contradiction for the kinds that can only happen once.
type slot[M proto.Message] struct {
	set     bool
	differs bool
	fact[M]
}

// join says whether the slot is another one then.
func (s *slot[M]) join(f fact[M]) (changed bool) { return s.pick(f, 1) }

// joinLatest keeps the greatest fact instead: for a kind where a later one replaces an earlier one.
func (s *slot[M]) joinLatest(f fact[M]) (changed bool) { return s.pick(f, -1) }

func (s *slot[M]) pick(f fact[M], sign int) (changed bool) {
	if !s.set {
		s.set, s.fact = true, f
		return true
	}
	if !s.differs && !proto.Equal(s.data, f.data) {
		s.differs, changed = true, true
	}
	switch c := sign * f.compare(s.fact); {
	case c < 0:
		s.fact, changed = f, true
	case c == 0:
		changed = s.happened(f.at) || changed
	}
	return changed
}

// happened takes a time at which the fact is said to have happened too, and says whether that changes it.
func (f *fact[M]) happened(at time.Time) (changed bool) {
	first := earliest(f.at, at)
	changed = !first.Equal(f.at)
	f.at = first
	return changed
}

// log holds several facts of a kind, the maxLog smallest.
type log[M proto.Message] struct {
	facts []fact[M]
}

const maxLog = 64

// join says whether the log is another one then.
func (l *log[M]) join(f fact[M]) (changed bool) {
	changed, _ = l.joinUpTo(f, maxLog)
	return changed
}

// joinUpTo keeps the limit smallest facts. whole is false when there was one more.
func (l *log[M]) joinUpTo(f fact[M], limit int) (changed, whole bool) {
	i, found := slices.BinarySearchFunc(l.facts, f, fact[M].compare)
	if found {
		return l.facts[i].happened(f.at), true
	}
	if i >= limit {
		return false, false
	}
	l.facts = slices.Insert(l.facts, i, f)
	more := len(l.facts) > limit
	l.facts = l.facts[:min(len(l.facts), limit)]
	return true, !more
}

// earliest is the smaller time; zero is no time.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func marshal(m proto.Message) []byte {
	// Marshalling a message that was unmarshalled cannot fail but for invalid UTF-8, which then
	// is no bytes at all: the order stays the same for everybody.
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return b
}
