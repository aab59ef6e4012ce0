package execution

// MarshalBeside is MarshalBinary for a state that is stored beside its row: bytes that stand in row.Stdout and row.Stderr are
// not in it again, which halves what is written. row is s.Row(). LoadBeside is the inverse.
func (s *State) MarshalBeside(row *Row) ([]byte, error) {
	return s.marshal(&writer{texts: map[string]uint64{}, beside: [streamCount]*string{stdout: row.Stdout, stderr: row.Stderr}})
}

// LoadBeside is Load for what MarshalBeside made, with the columns stdout and stderr of the same row. Others give an error with
// ErrState in its chain.
func LoadBeside(b []byte, out, errors *string) (*State, error) {
	return load(b, &reader{beside: [streamCount]*string{stdout: out, stderr: errors}})
}

// locate returns where the bytes of head and tail begin in the stream's preview; negative when they do not stand there as they
// came, one segment right behind the other: since not all of them are valid UTF-8, or there are holes among them.
func (s *stream) locate(preview string) (head, tail int) {
	head, tail = 0, len(preview)-s.tail.len()
	if !holds(preview, head, &s.head) {
		head = -1
	}
	if !holds(preview, tail, &s.tail) {
		tail = -1
	}
	return head, tail
}

func (w *window) len() int {
	n := 0
	for _, g := range w.segments {
		n += len(g.data)
	}
	return n
}

func holds(text string, at int, w *window) bool {
	for _, g := range w.segments {
		end := at + len(g.data)
		if at < 0 || end > len(text) || text[at:end] != string(g.data) {
			return false
		}
		at = end
	}
	return true
}
