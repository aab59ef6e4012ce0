package execution

// About what the parts of a state take, in bytes. A state has maps, slots and a few facts of its own; a piece of kept bytes has an
// allocation beside its place in the list of them.
const (
	stateBytes    = 4 << 10
	attemptBytes  = 2 << 10
	producerBytes = 128
	foreignBytes  = 48
	rangeBytes    = 16
	segmentBytes  = 56 + 16
)

// Size is about how much memory the state takes, in bytes: what grows with the facts is counted, the rest is a constant.
func (s *State) Size() int {
	n := stateBytes + s.waiting + len(s.seen.foreign)*foreignBytes
	for k, p := range s.seen.producers {
		n += producerBytes + len(k.source) + len(k.name) + len(p.sequences.Ranges())*rangeBytes
	}
	for _, a := range s.attempts {
		n += attemptBytes
		for i := range a.streams {
			n += a.streams[i].size()
		}
	}
	return n
}

func (s *stream) size() int {
	n := (len(s.received.Ranges())+len(s.twice.Ranges()))*rangeBytes + len(s.digest.waiting)*segmentBytes
	for _, w := range []*window{&s.head, &s.tail} {
		n += w.len() + len(w.segments)*segmentBytes
	}
	return n
}
