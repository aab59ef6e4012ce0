package execution

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"

	"verbatim.dev/events"
	"verbatim.dev/projections/internal/interval"
)

// Bounds of Seen. An honest producer needs one range per attempt; the limits are for the others.
const (
	maxRanges    = 1 << 14
	maxProducers = 1 << 10
	maxForeign   = 1 << 10
)

// Seen is the set of facts of one execution that were met, by (source, id). Ids of the deterministic form
// <execution>/<attempt>/<producer>/<sequence> are kept as ranges of sequences, so ten million chunks take as
// much memory as one. Other ids are kept as hashes, the maxForeign smallest of them: which ones does not
// depend on the order. The zero value is empty. It is not safe for concurrent use.
type Seen struct {
	producers map[producerKey]*producer
	last      *producer
	foreign   []foreignID // ascending by hash
	counted   uint64      // facts in the producers' ranges
}

type producerKey struct {
	attempt uint32
	source  string
	name    string
}

type producer struct {
	key       producerKey
	sequences interval.Set
}

type foreignID struct {
	hash    [16]byte
	typ     string
	unknown bool
}

// met is what adding a fact found out.
type met int

const (
	metBefore  met = iota
	metNew         // counted by its sequence
	metForeign     // new, with a foreign id
	metUnsure      // a limit is reached: it could not be kept
)

// Add says whether the fact is new. It is not sure when a limit is reached; then the fact may have been met before.
func (s *Seen) Add(e events.Event) (added, sure bool) {
	m, _, _ := s.add(e, false)
	return m == metNew || m == metForeign, m != metUnsure
}

// Len is the number of distinct facts met, a lower bound once a limit was reached.
func (s *Seen) Len() uint64 { return s.counted + uint64(len(s.foreign)) }

// add also says whether that changed anything, and returns the source as a string that is shared by all facts of a producer.
func (s *Seen) add(e events.Event, unknown bool) (m met, changed bool, source string) {
	name, ok := producerName(e)
	if !ok {
		m, changed = s.addForeign(e, unknown)
		return m, changed, strings.Clone(e.Source)
	}
	p := s.producer(producerKey{e.Attempt, e.Source, name})
	if p == nil {
		return metUnsure, false, strings.Clone(e.Source)
	}
	if p.sequences.Contains(e.Sequence) {
		return metBefore, false, p.key.source
	}
	if !p.sequences.Add(interval.Range{Start: e.Sequence, End: e.Sequence + 1}, maxRanges) {
		return metUnsure, false, p.key.source
	}
	s.counted++
	return metNew, true, p.key.source
}

func (s *Seen) producer(k producerKey) *producer {
	if s.last != nil && s.last.key == k {
		return s.last
	}
	p, ok := s.producers[k]
	if !ok {
		if len(s.producers) >= maxProducers {
			return nil
		}
		if s.producers == nil {
			s.producers = make(map[producerKey]*producer)
		}
		k.source, k.name = strings.Clone(k.source), strings.Clone(k.name)
		p = &producer{key: k}
		s.producers[k] = p
	}
	s.last = p
	return p
}

func (s *Seen) addForeign(e events.Event, unknown bool) (m met, changed bool) {
	sum := sha256.Sum256([]byte(strconv.Itoa(len(e.Source)) + " " + e.Source + e.ID))
	f := foreignID{typ: strings.Clone(e.Type), unknown: unknown}
	copy(f.hash[:], sum[:])
	i, found := slices.BinarySearchFunc(s.foreign, f, func(a, b foreignID) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	switch {
	case found:
		// One id for two facts: the smaller, in any order.
		if old := s.foreign[i]; f.typ < old.typ || f.typ == old.typ && old.unknown && !f.unknown {
			s.foreign[i], changed = f, true
		}
		return metBefore, changed
	case len(s.foreign) < maxForeign:
		s.foreign = slices.Insert(s.foreign, i, f)
		return metForeign, true
	case i < maxForeign:
		s.foreign, changed = slices.Insert(s.foreign[:maxForeign-1], i, f), true
	}
	return metUnsure, changed
}

// producerName returns the producer part of a deterministic id; false when the id does not say
// the event's own subject, attempt and sequence.
func producerName(e events.Event) (string, bool) {
	// The greatest sequence has no successor, so no half-open range holds it.
	if e.Sequence == 0 || e.Sequence+1 == 0 {
		return "", false
	}
	var buf [24]byte
	rest, ok := strings.CutPrefix(e.ID, e.Subject)
	if !ok {
		return "", false
	}
	attempt := append(strconv.AppendUint(append(buf[:0], '/'), uint64(e.Attempt), 10), '/')
	if len(rest) < len(attempt) || rest[:len(attempt)] != string(attempt) {
		return "", false
	}
	rest = rest[len(attempt):]
	sequence := strconv.AppendUint(append(buf[:0], '/'), e.Sequence, 10)
	cut := len(rest) - len(sequence)
	if cut < 1 || rest[cut:] != string(sequence) {
		return "", false
	}
	return rest[:cut], true
}

// heard is the highest number met of an attempt's runner, 0 when there is none.
func (s *Seen) heard(attempt uint32) uint64 {
	last := uint64(0)
	for k, p := range s.producers {
		if rs := p.sequences.Ranges(); k.attempt == attempt && k.name == runnerName && len(rs) > 0 {
			last = max(last, rs[len(rs)-1].End-1)
		}
	}
	return last
}

// runnerName is the producer part of the ids of a runner's facts.
const runnerName = "runner"

func (s *Seen) sorted() []*producer {
	all := make([]*producer, 0, len(s.producers))
	for _, p := range s.producers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *producer) int {
		return cmp.Or(cmp.Compare(a.key.attempt, b.key.attempt), cmp.Compare(a.key.source, b.key.source), cmp.Compare(a.key.name, b.key.name))
	})
	return all
}
