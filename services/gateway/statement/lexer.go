package statement

import (
	"errors"
	"fmt"
	"strings"
)

type kind int

const (
	none   kind = iota
	bare        // A word without quotes: keyword or identifier.
	quoted      // An identifier in quotes; value is without them.
	text        // A string.
	number
	sign // One character.
)

type token struct {
	kind  kind
	value string
}

func (t token) is(s string) bool { return t.kind == sign && t.value == s }

func (t token) lower() string {
	if t.kind != bare {
		return ""
	}
	return strings.ToLower(t.value)
}

// name is the lower-case name of an identifier, quoted or not.
func (t token) name() string {
	if t.kind != bare && t.kind != quoted {
		return ""
	}
	return strings.ToLower(t.value)
}

// scan cuts a text into tokens by the rules of ClickHouse's lexer (src/Parsers/Lexer.cpp), and refuses
// what this package would read differently.
func scan(sql string) ([]token, error) {
	var tokens []token
	for i := 0; i < len(sql); {
		t, n, err := next(sql[i:])
		if err != nil {
			return nil, err
		}
		if t.kind != none {
			tokens = append(tokens, t)
		}
		i += n
	}
	return tokens, nil
}

// next returns the first token and its length; kind none for what means nothing.
func next(s string) (token, int, error) {
	c := s[0]
	switch {
	case strings.IndexByte(" \t\n\r\f\v", c) >= 0:
		return token{}, 1, nil
	case strings.HasPrefix(s, "--"), strings.HasPrefix(s, "# "), strings.HasPrefix(s, "#!"):
		return token{}, lineEnd(s), nil
	case strings.HasPrefix(s, "/*"):
		end := strings.Index(s[2:], "*/")
		if end < 0 {
			return token{}, 0, errors.New("a comment does not end")
		}
		return token{}, end + 4, nil
	case c == '\'':
		return inQuotes(s, text)
	case c == '"', c == '`':
		return inQuotes(s, quoted)
	case c == '$':
		return heredoc(s)
	case isDigit(c):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '.') {
			n++
		}
		return token{number, s[:n]}, n, nil
	case isWord(c):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '$') {
			n++
		}
		return token{bare, s[:n]}, n, nil
	case c < ' ', c >= 0x7f:
		return token{}, 0, fmt.Errorf("the character %q stands outside of quotes", []rune(s)[0])
	}
	return token{sign, s[:1]}, 1, nil
}

func lineEnd(s string) int {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return i + 1
	}
	return len(s)
}

// inQuotes reads up to the closing quote; a backslash or a second quote escapes.
func inQuotes(s string, k kind) (token, int, error) {
	quote := s[0]
	var value strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			if k == quoted {
				return token{}, 0, errors.New("a quoted name has a backslash")
			}
			i++
			value.WriteByte(s[i])
		case s[i] != quote:
			value.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == quote:
			i++
			value.WriteByte(quote)
		default:
			return token{k, value.String()}, i + 1, nil
		}
	}
	return token{}, 0, errors.New("a quote is not closed")
}

// heredoc reads $tag$ … $tag$; a dollar that begins none is a sign.
func heredoc(s string) (token, int, error) {
	n := 1
	for n < len(s) && isWord(s[n]) {
		n++
	}
	if n == len(s) || s[n] != '$' {
		return token{sign, "$"}, 1, nil
	}
	tag := s[:n+1]
	end := strings.Index(s[len(tag):], tag)
	if end < 0 {
		return token{}, 0, errors.New("a heredoc does not end")
	}
	return token{text, s[len(tag) : len(tag)+end]}, 2*len(tag) + end, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isWord(c byte) bool {
	return c == '_' || isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
