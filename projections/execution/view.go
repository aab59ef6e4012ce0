package execution

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// view fills in the previews and sizes.
func (a *attempt) view(r *Row) {
	for i := range a.streams {
		show, size, truncated, left := &r.Stdout, &r.StdoutBytes, &r.StdoutTruncated, &r.StdoutBytesTruncated
		if i == stderr {
			show, size, truncated, left = &r.Stderr, &r.StderrBytes, &r.StderrTruncated, &r.StderrBytesTruncated
		}
		s := &a.streams[i]
		if !a.closed(i) && s.end == 0 {
			continue
		}
		total := max(s.end, a.sealOf(i).GetCapturedBytes())
		preview, hidden := preview(s.pieces(), total, a.closed(i))
		*show, *size, *truncated, *left = &preview, &total, ptr(hidden > 0), &hidden
	}
}

// preview renders pieces of a stream of the given size as valid UTF-8 and counts the bytes it does not show.
// closed says that nothing comes after the size.
func preview(pieces []segment, size uint64, closed bool) (string, uint64) {
	var b strings.Builder
	kept := 0
	for _, p := range pieces {
		kept += len(p.data)
	}
	b.Grow(kept + 64*(len(pieces)+1))
	at, shown := uint64(0), uint64(0)
	for _, p := range pieces {
		data := p.data
		if p.offset > at {
			data = data[continuations(data):]
		}
		start := p.end() - uint64(len(data))
		if p.end() < size || !closed {
			data = trimIncomplete(data)
		}
		leftOut(&b, at, start)
		appendValid(&b, data)
		at = start + uint64(len(data))
		shown += uint64(len(data))
	}
	// A character that is not whole yet is shown when its rest comes; nothing stands in its place.
	if closed || len(pieces) == 0 || pieces[len(pieces)-1].end() < size {
		leftOut(&b, at, size)
	}
	return b.String(), size - shown
}

func leftOut(b *strings.Builder, from, to uint64) {
	if to > from {
		fmt.Fprintf(b, "\n… %d bytes left out …\n", to-from)
	}
}

// continuations is how many bytes at the beginning belong to a character that began before.
func continuations(data []byte) int {
	n := 0
	for n < len(data) && n < utf8.UTFMax-1 && !utf8.RuneStart(data[n]) {
		n++
	}
	return n
}

// trimIncomplete cuts a character at the end that lacks bytes.
func trimIncomplete(data []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(data); i++ {
		if at := len(data) - i; utf8.RuneStart(data[at]) {
			if !utf8.FullRune(data[at:]) {
				return data[:at]
			}
			break
		}
	}
	return data
}

// appendValid appends data with every wrong byte as U+FFFD.
func appendValid(b *strings.Builder, data []byte) {
	for len(data) > 0 {
		if utf8.Valid(data) {
			b.Write(data)
			return
		}
		n := 0
		for n < len(data) {
			c, size := utf8.DecodeRune(data[n:])
			if c == utf8.RuneError && size == 1 {
				break
			}
			n += size
		}
		b.Write(data[:n])
		b.WriteRune(utf8.RuneError)
		data = data[n+1:]
	}
}

const maxErrorLines = 5

// lastWords is what the process said on stderr, for Row.Error: all of it when it is at most maxErrorLines lines,
// else its last line that is not blank. "" when it said nothing.
func (s *stream) lastWords(size uint64) string {
	pieces := s.pieces()
	if len(pieces) == 0 {
		return ""
	}
	whole := len(pieces) == 1 && pieces[0].offset == 0 && pieces[0].end() == size
	data := bytes.TrimRight(pieces[len(pieces)-1].data, "\r\n")
	cut := !whole
	if !whole || bytes.Count(data, []byte("\n")) >= maxErrorLines {
		data = bytes.TrimRight(data, " \t\r\n\v\f")
		if i := bytes.LastIndexByte(data, '\n'); i >= 0 {
			data, cut = data[i+1:], false
		}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return ""
	}
	return shorten(data, cut)
}

// shorten renders a text of at most maxTextBytes. Of a longer one it keeps the beginning, or the end
// when the beginning is not known.
func shorten(data []byte, beginningUnknown bool) string {
	const mark = "…"
	const limit = maxTextBytes - len(mark)
	var b strings.Builder
	switch {
	case beginningUnknown:
		data = data[max(0, len(data)-limit):]
		appendValid(&b, data[continuations(data):])
	case len(data) > maxTextBytes:
		appendValid(&b, trimIncomplete(data[:limit]))
	default:
		appendValid(&b, data)
	}
	// Every wrong byte became three.
	out := b.String()
	switch {
	case beginningUnknown:
		out = out[max(0, len(out)-limit):]
		return mark + out[continuations([]byte(out)):]
	case len(data) > maxTextBytes || len(out) > maxTextBytes:
		return string(trimIncomplete([]byte(out[:min(len(out), limit)]))) + mark
	}
	return out
}
