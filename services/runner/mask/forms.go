package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds on values, in bytes.
const (
	// MinBytes is the least length of a form that is masked.
	MinBytes = 4
	// MaxBytes is the most that one value may have.
	MaxBytes = 64 << 10
)

// forms returns the byte strings in which a value may show itself, each at least MinBytes long.
func forms(value []byte) [][]byte {
	var out [][]byte
	add := func(form []byte) {
		if len(form) >= MinBytes {
			out = append(out, form)
		}
	}
	add(value)
	if text := bytes.TrimSpace(value); len(text) != len(value) {
		add(text) // A file's last newline is not a part of the secret.
	}
	lines := bytes.FieldsFunc(value, func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > 1 {
		for _, line := range lines {
			// A line that is as short as a brace would mask it everywhere.
			if line = bytes.TrimSpace(line); len(line) >= 2*MinBytes {
				add(line)
			}
		}
		crlf := bytes.ReplaceAll(bytes.ReplaceAll(value, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
		add(crlf)
	}
	for _, v := range [][]byte{value, bytes.TrimSpace(value)} {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for _, form := range encoded(encoding, v) {
				// Eight characters carry six bytes; a shorter run of base64 is anything.
				if len(form) >= 2*MinBytes {
					add(form)
				}
			}
		}
		for _, escaped := range []string{url.QueryEscape(string(v)), url.PathEscape(string(v)), percent(v)} {
			add([]byte(escaped))
			add([]byte(lowerHex(escaped)))
		}
		if quoted, err := json.Marshal(string(v)); err == nil && len(quoted) > 2 {
			add(quoted[1 : len(quoted)-1])
		}
		add(AppendJSON(nil, v))
		add(asciiJSON(v))
	}
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

// encoded returns the parts of base64 that a value alone decides, for each position it may have in the encoded text: with
// 0, 1 or 2 bytes before it, and anything after it.
func encoded(encoding *base64.Encoding, value []byte) [][]byte {
	var out [][]byte
	for before := range 3 {
		padded := append(make([]byte, before), value...)
		text := encoding.EncodeToString(padded)
		// The first characters also hold bits of what is before the value, the last those of what comes after.
		first := []int{0, 2, 3}[before]
		last := len(padded) * 8 / 6
		if first < last {
			out = append(out, []byte(text[first:last]))
		}
		if before == 0 {
			out = append(out, []byte(text)) // The value encoded alone, up to its padding.
		}
	}
	return out
}

// percent escapes every byte that RFC 3986 does not call unreserved.
func percent(v []byte) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range v {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// AppendJSON appends the content of the JSON string of a text as most programs write it, and the runner, too: only what must be
// escaped is (RFC 8259, section 7).
func AppendJSON(to, text []byte) []byte {
	const hex = "0123456789abcdef"
	for _, c := range text {
		switch short := strings.IndexByte("\b\t\n\f\r\"\\", c); {
		case short >= 0:
			to = append(to, '\\', "btnfr\"\\"[short])
		case c < ' ':
			to = append(to, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			to = append(to, c)
		}
	}
	return to
}

// asciiJSON is the same with everything that is not ASCII as \uXXXX, as Python does it.
func asciiJSON(text []byte) []byte {
	var out []byte
	for _, r := range string(AppendJSON(nil, text)) {
		switch {
		case r < utf8.RuneSelf:
			out = append(out, byte(r))
		case r <= 0xffff:
			out = fmt.Appendf(out, "\\u%04x", r)
		default:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, "\\u%04x\\u%04x", high, low)
		}
	}
	return out
}

// lowerHex writes the digits of %XX in lower case.
func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
			i += 2
		}
	}
	return string(b)
}
