package mask

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Secret is a value to hide.
type Secret struct {
	Name  string
	Value []byte
}

// Range is the half-open range [Start, End) of a stream.
type Range struct{ Start, End uint64 }

// Masker knows the values. It is immutable and safe for concurrent use; the zero value hides nothing. It does not show
// what it knows: its text form is its type's name.
type Masker struct {
	// nodes is the automaton; node 0 is its root. A node stands for the bytes on the way to it.
	nodes []node
	root  [256]int32
	// longest is the length of the longest form.
	longest int
	forms   [][]byte
}

type node struct {
	edges []edge // by byte
	fail  int32  // the longest proper suffix of these bytes that is a way in the automaton
	depth int32  // the number of these bytes
	match int32  // the length of the longest form that these bytes end with, 0 for none
	hold  int32  // how many of the last bytes may become a form yet
}

type edge struct {
	b  byte
	to int32
}

// Empty reports whether there is nothing to hide.
func (m *Masker) Empty() bool { return m == nil || len(m.nodes) <= 1 }

// Reach is how many bytes before a position can decide, together with what follows, whether the byte there is hidden: a stream
// that begins so much earlier hides the same from there on.
func (m *Masker) Reach() int {
	if m.Empty() {
		return 0
	}
	return m.longest - 1
}

// String keeps values out of logs.
func (*Masker) String() string { return "mask.Masker" }

// GoString keeps values out of logs.
func (*Masker) GoString() string { return "mask.Masker" }

// TooShort reports whether a value is not masked where it stands by itself, without the space around it: it would be masked everywhere.
// Longer forms of it (escaped with its newline, say) are.
func TooShort(value []byte) bool { return len(bytes.TrimSpace(value)) < MinBytes }

// New learns the values. unmasked names the secrets that are TooShort.
func New(secrets []Secret) (m *Masker, unmasked []string, err error) {
	m = &Masker{nodes: []node{{}}}
	for _, s := range secrets {
		if len(s.Value) > MaxBytes {
			return nil, nil, fmt.Errorf("secret %q has %d bytes, the limit is %d", s.Name, len(s.Value), MaxBytes)
		}
		all := forms(s.Value)
		if TooShort(s.Value) {
			unmasked = append(unmasked, s.Name)
		}
		for _, form := range all {
			m.forms = append(m.forms, slices.Clone(form)) // The value is the caller's, who wipes it.
			m.learn(form)
		}
	}
	if len(m.nodes) > 1<<24 {
		return nil, nil, errors.New("the secrets' values are too large altogether")
	}
	m.link()
	return m, unmasked, nil
}

func (m *Masker) learn(form []byte) {
	at := int32(0)
	for _, b := range form {
		i, found := m.edge(at, b)
		if !found {
			next := int32(len(m.nodes))
			m.nodes = append(m.nodes, node{depth: m.nodes[at].depth + 1})
			m.nodes[at].edges = slices.Insert(m.nodes[at].edges, i, edge{b, next})
			at = next
			continue
		}
		at = m.nodes[at].edges[i].to
	}
	m.nodes[at].match = int32(len(form))
	m.longest = max(m.longest, len(form))
}

// link sets where each node goes on when nothing fits, breadth first: what is shorter is known before.
func (m *Masker) link() {
	for _, e := range m.nodes[0].edges {
		m.root[e.b] = e.to
	}
	queue := []int32{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, e := range m.nodes[at].edges {
			if at != 0 {
				m.nodes[e.to].fail = m.step(m.nodes[at].fail, e.b)
			}
			n := &m.nodes[e.to]
			n.match = max(n.match, m.nodes[n.fail].match)
			if n.hold = n.depth; len(n.edges) == 0 {
				n.hold = m.nodes[n.fail].hold
			}
			queue = append(queue, e.to)
		}
	}
}

func (m *Masker) edge(at int32, b byte) (int, bool) {
	return slices.BinarySearchFunc(m.nodes[at].edges, b, func(e edge, b byte) int { return int(e.b) - int(b) })
}

func (m *Masker) step(at int32, b byte) int32 {
	for {
		if i, found := m.edge(at, b); found {
			return m.nodes[at].edges[i].to
		}
		if at == 0 {
			return 0
		}
		at = m.nodes[at].fail
	}
}

// Stream masks one stream. It is not safe for concurrent use.
type Stream struct {
	masker *Masker
	state  int32
	// held are the bytes that are not decided, in clear; the first of them is at offset start. hide are the ranges of
	// held, from its beginning, that belong to a value: ascending and apart.
	held  []byte
	hide  []Range
	start uint64
	// rest is nil but for a stream after a hole of which the beginning is not decided.
	rest *rest
}

// Stream returns a stream that begins at an offset.
func (m *Masker) Stream(offset uint64) *Stream { return &Stream{masker: m, start: offset} }

// Held is how many bytes are not decided.
func (s *Stream) Held() int { return len(s.held) }

// Write takes the next bytes and returns those that are decided, masked, and the ranges that were masked among them. What
// is returned follows what was returned before; both are the caller's.
func (s *Stream) Write(p []byte) (decided []byte, masked []Range) {
	m := s.masker
	if len(m.nodes) <= 1 {
		s.start += uint64(len(p))
		return slices.Clone(p), nil
	}
	at, before := s.state, len(s.held)
	s.held = append(s.held, p...)
	for i := before; i < len(s.held); i++ {
		if at == 0 {
			// Most bytes begin nothing.
			if at = m.root[s.held[i]]; at == 0 {
				continue
			}
		} else {
			at = m.step(at, s.held[i])
		}
		if n := int(m.nodes[at].match); n > 0 {
			s.mark(uint64(i+1-n), uint64(i+1))
		}
	}
	s.state = at
	if !s.settle(false) {
		return nil, nil
	}
	// Whatever begins before the bytes that may still become a value is decided.
	return s.release(len(s.held) - int(m.nodes[at].hold))
}

// mark adds a range that ends where no range before it ended later.
func (s *Stream) mark(start, end uint64) {
	for len(s.hide) > 0 && s.hide[len(s.hide)-1].End >= start {
		start = min(start, s.hide[len(s.hide)-1].Start)
		s.hide = s.hide[:len(s.hide)-1]
	}
	s.hide = append(s.hide, Range{start, end})
}

// Close ends the stream and returns what was held.
func (s *Stream) Close() (decided []byte, masked []Range) {
	s.state = 0
	s.settle(true)
	return s.release(len(s.held))
}

// release decides the first n held bytes.
func (s *Stream) release(n int) (decided []byte, masked []Range) {
	decided = slices.Clone(s.held[:n])
	var rest []Range
	for _, r := range s.hide {
		if in := min(r.End, uint64(n)); r.Start < in {
			for i := r.Start; i < in; i++ {
				decided[i] = '*'
			}
			masked = append(masked, Range{s.start + r.Start, s.start + in})
		}
		if r.End > uint64(n) {
			rest = append(rest, Range{max(r.Start, uint64(n)) - uint64(n), r.End - uint64(n)})
		}
	}
	clear(s.held[:n]) // Nothing of a value stays longer than it must.
	s.held, s.hide = slices.Delete(s.held, 0, n), rest
	s.start += uint64(n)
	return decided, masked
}
