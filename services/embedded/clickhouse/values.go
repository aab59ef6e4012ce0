package clickhouse

import (
	"bytes"
	"io"
)

// valuesReader refuses text after the semicolon that ends the data of INSERT … VALUES. The engine would stop reading
// there and report success, and rows after it would be lost without a word.
type valuesReader struct {
	source io.Reader
	state  byte // 0, or the quote that is open, or '-' and '*' in the two kinds of comment, or ';' after the end
	last   byte // the byte before, 0 after one that was taken as part of a pair
}

func (r *valuesReader) Read(p []byte) (int, error) {
	n, err := r.source.Read(p)
	for _, c := range p[:n] {
		if !r.step(c) {
			return 0, raise(codeCannotReadAllData, "CANNOT_READ_ALL_DATA", "Cannot read data after semicolon")
		}
	}
	return n, err
}

// step takes one byte and reports whether it may stand where it stands.
func (r *valuesReader) step(c byte) bool {
	last := r.last
	r.last = c
	switch r.state {
	case ';':
		return bytes.IndexByte([]byte(" \t\r\n\f\v"), c) >= 0
	case '\'', '"', '`':
		switch {
		case last == '\\':
			r.last = 0 // escaped
		case c == r.state:
			r.state = 0 // a doubled quote opens the string again
		}
	case '-':
		if c == '\n' {
			r.state = 0
		}
	case '*':
		if last == '*' && c == '/' {
			r.state, r.last = 0, 0
		}
	default:
		switch {
		case c == '\'' || c == '"' || c == '`' || c == ';':
			r.state, r.last = c, 0
		case last == '-' && c == '-':
			r.state = '-'
		case last == '/' && c == '*':
			r.state, r.last = '*', 0
		}
	}
	return true
}
