package mask

// StreamAfterHole returns a stream that goes on at an offset behind bytes that nobody knows. A value may have begun among them, so the
// longest beginning of the stream that is the end of a form is hidden, too. Until that is decided, which takes Reach bytes at most,
// everything is held back.
func (m *Masker) StreamAfterHole(offset uint64) *Stream {
	s := m.Stream(offset)
	if m.Empty() {
		return s
	}
	s.rest = &rest{fail: []int32{0}}
	for _, form := range m.forms {
		s.rest.open = append(s.rest.open, search{form: form})
	}
	return s
}

// rest looks for the longest beginning of a stream that is the end of a form: it searches each form for the stream (Knuth, Morris and
// Pratt, 1977), of which more and more is known. What is found where the form ends is the beginning in question.
type rest struct {
	// fail says, for each length, how long the longest proper beginning of so many bytes is that is their end, too.
	fail []int32
	// open are the searches that have to know more of the stream: all that is known stands in their forms.
	open []search
	// longest is what was found in the other forms.
	longest int
}

// search is how far one form was searched: the last bytes of form[:at], as many as are found, are the first of the stream.
type search struct {
	form      []byte
	at, found int
}

// learn goes on with what is known of the stream now, from its beginning on; over says that there is no more. It reports whether the
// end of a form is decided.
func (r *rest) learn(text []byte, over bool) bool {
	if len(text) == 0 {
		return over
	}
	for n := len(r.fail); n <= len(text); n++ {
		k := r.fail[n-1]
		for k > 0 && text[k] != text[n-1] {
			k = r.fail[k]
		}
		if n > 1 && text[k] == text[n-1] {
			k++
		}
		r.fail = append(r.fail, k)
	}
	open := r.open[:0]
	for _, s := range r.open {
		if s.run(text, r.fail, over) {
			r.longest = max(r.longest, s.found)
		} else {
			open = append(open, s)
		}
	}
	r.open = open
	return len(open) == 0
}

// run searches on, and reports whether it came to the form's end.
func (s *search) run(text []byte, fail []int32, over bool) bool {
	for s.at < len(s.form) {
		if s.found == len(text) {
			if !over {
				return false
			}
			s.found = int(fail[s.found])
		}
		switch {
		case s.form[s.at] == text[s.found]:
			s.at, s.found = s.at+1, s.found+1
		case s.found > 0:
			s.found = int(fail[s.found])
		default:
			s.at++
		}
	}
	return true
}

// settle hides the end of a form that the stream begins with, and reports whether that is decided. Nothing was released before.
func (s *Stream) settle(over bool) bool {
	if s.rest == nil {
		return true
	}
	if !s.rest.learn(s.held[:min(len(s.held), s.masker.longest)], over) {
		return false
	}
	end, n := uint64(s.rest.longest), 0
	s.rest = nil
	if end == 0 {
		return true
	}
	for ; n < len(s.hide) && s.hide[n].Start <= end; n++ {
		end = max(end, s.hide[n].End)
	}
	s.hide = append([]Range{{0, end}}, s.hide[n:]...)
	return true
}
