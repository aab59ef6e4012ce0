package clickhouse

import (
	"bytes"
	"strings"
)

// statement is what has to be known of a query before the engine sees it: whether data follows it, in which format its
// answer comes, and whether it reaches for the files of this machine. It is found by looking at the tokens only; the
// engine does the real parsing. A wrong guess can make an answer slower or an error less clear, never wrong.
type statement struct {
	verb string // first word, in upper case: SELECT, INSERT, CREATE …

	// Of an INSERT that brings its data along.
	hasData    bool
	head       string // the statement before FORMAT or VALUES
	format     string // the format of the data; of any other statement, the format that it asks its answer in
	dataOffset int    // where the data begins

	formatAt  int        // where FORMAT stands in any other statement, or -1
	textEnd   int        // the end of the last token that is no semicolon
	totals    bool       // WITH TOTALS, WITH ROLLUP or WITH CUBE appears
	fromInput bool       // the input() table function appears
	forbidden *exception // the statement uses files of this machine
}

// parseStatement looks at text, which may be the beginning of an INSERT only.
func parseStatement(text []byte) statement {
	s := statement{formatAt: -1}
	lex := lexer{text: text}
	files := fileUse{}
	var prev, prev2 token
	into, target, selects := false, false, false
	for {
		t := lex.next()
		if t.kind == tokenEnd {
			break
		}
		if !t.is(";") {
			s.textEnd = t.end
		}
		word := t.word()
		if s.verb == "" && t.kind == tokenWord {
			s.verb = word
		}
		s.checkFiles(&files, t, prev, prev2)
		if s.verb == "INSERT" && lex.depth == 0 {
			switch {
			case word == "INTO" && !into:
				into = true
			case into && !target && word != "TABLE" && word != "FUNCTION":
				target = true
			case target && (word == "SELECT" || word == "WITH"):
				selects = true
			case target && !selects && s.insertData(&lex, t, prev):
				return s
			}
		}
		if lex.depth == 0 {
			s.answerFormat(t, prev, prev2)
		}
		if prev.word() == "WITH" && (word == "TOTALS" || word == "ROLLUP" || word == "CUBE") {
			s.totals = true
		}
		prev2, prev = prev, t
	}
	return s
}

// insertData recognises the word that ends the statement and begins the data.
func (s *statement) insertData(lex *lexer, t, prev token) bool {
	if prev.kind == tokenOther && prev.is(".") {
		return false // part of the table's name
	}
	switch {
	case t.word() == "VALUES":
		s.hasData, s.format, s.head, s.dataOffset = true, "Values", string(lex.text[:t.start]), t.end
		return true
	case prev.word() == "FORMAT" && t.kind == tokenWord:
		s.hasData, s.format, s.head = true, t.text(), string(lex.text[:prev.start])
		s.dataOffset = skipToData(lex.text, t.end)
		return true
	}
	return false
}

// skipToData follows ClickHouse's ParserInsertQuery: after the name of the format blanks and at most one line end are
// skipped, and then the data begins.
func skipToData(text []byte, at int) int {
	for at < len(text) && (text[at] == ' ' || text[at] == '\t' || text[at] == '\f') {
		at++
	}
	if at < len(text) && text[at] == '\r' {
		at++
	}
	if at < len(text) && text[at] == '\n' {
		at++
	}
	return at
}

// answerFormat recognises FORMAT Name at the end of a statement: only ;, SETTINGS or INTO may follow.
func (s *statement) answerFormat(t, prev, prev2 token) {
	if prev.word() == "FORMAT" && t.kind == tokenWord && prev2.kind != tokenEnd && !prev2.is(",") && !prev2.is(".") {
		s.format, s.formatAt = t.text(), prev.start
		return
	}
	if s.format != "" && prev2.word() == "FORMAT" && !t.is(";") && t.word() != "SETTINGS" && t.word() != "INTO" {
		s.format, s.formatAt = "", -1
	}
}

// fileUse is what of the function file has been seen. Its name can stand without parentheses where a higher-order
// function or APPLY takes a function.
type fileUse struct{ named, takesFunction bool }

// checkFiles refuses what a server refuses or keeps inside one folder, and what this engine would do anywhere on the
// machine with the rights of our user: INTO OUTFILE, FROM INFILE and the function file. Table functions and table
// engines that reach outside are closed by grants, see engineUsers.
func (s *statement) checkFiles(files *fileUse, t, prev, prev2 token) {
	if s.forbidden != nil {
		return
	}
	prevText := strings.ToLower(prev.text())
	switch {
	case t.word() == "OUTFILE" && prev.word() == "INTO" && prev2.word() != "INSERT":
		s.forbidden = raise(codeIntoOutfileNotAllowed, "INTO_OUTFILE_NOT_ALLOWED", "INTO OUTFILE is not allowed")
	case s.verb == "INSERT" && t.word() == "INFILE" && prev.word() == "FROM":
		s.forbidden = raise(codeUnknownTypeOfQuery, "UNKNOWN_TYPE_OF_QUERY", "Query has infile and was send directly to server")
	case strings.EqualFold(t.text(), "file"):
		files.named = true
	case t.word() == "APPLY", t.is("(") && (strings.HasPrefix(prevText, "array") || strings.HasPrefix(prevText, "map")):
		files.takesFunction = true
	case t.is("(") && prevText == "input":
		s.fromInput = true
	}
	called := t.is("(") && prevText == "file" && prev2.word() != "FUNCTION"
	if called || files.named && files.takesFunction {
		s.forbidden = raise(codeAccessDenied, "ACCESS_DENIED", "default: Not enough privileges. The function file is not available in the embedded engine")
	}
}

type tokenKind int

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenQuoted // "…" or `…`
	tokenString
	tokenOther // one character
)

type token struct {
	kind       tokenKind
	start, end int
	src        []byte
}

// word is a bare word in upper case, or empty.
func (t token) word() string {
	if t.kind != tokenWord {
		return ""
	}
	return strings.ToUpper(string(t.src))
}

// text is the name that a bare or quoted identifier stands for.
func (t token) text() string {
	switch t.kind {
	case tokenWord:
		return string(t.src)
	case tokenQuoted:
		return unescapeIdentifier(t.src)
	default:
		return ""
	}
}

func (t token) is(s string) bool { return t.kind == tokenOther && string(t.src) == s }

// unescapeIdentifier undoes the escapes that matter for a comparison with a plain ASCII word. An escape it does not
// know becomes the escaped character.
func unescapeIdentifier(src []byte) string {
	if len(src) < 2 {
		return ""
	}
	quote, src := src[0], src[1:len(src)-1]
	var out strings.Builder
	for i := 0; i < len(src); i++ {
		switch {
		case src[i] == quote:
			i++
			out.WriteByte(quote)
		case src[i] == '\\' && i+3 < len(src) && src[i+1] == 'x':
			out.WriteByte(hex(src[i+2])<<4 | hex(src[i+3]))
			i += 3
		case src[i] == '\\' && i+1 < len(src):
			i++
			out.WriteByte(src[i])
		default:
			out.WriteByte(src[i])
		}
	}
	return out.String()
}

func hex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	default:
		return 0
	}
}

// lexer cuts SQL into tokens by the rules of ClickHouse's src/Parsers/Lexer.cpp, and counts the open parentheses.
type lexer struct {
	text  []byte
	at    int
	depth int
}

func (l *lexer) next() token {
	l.skipBlank()
	if l.at >= len(l.text) {
		return token{kind: tokenEnd, start: l.at, end: l.at}
	}
	start := l.at
	kind := tokenOther
	switch c := l.text[l.at]; {
	case c == '\'':
		kind = tokenString
		l.quoted(c)
	case c == '"' || c == '`':
		kind = tokenQuoted
		l.quoted(c)
	case isWordByte(c):
		kind = tokenWord
		for l.at < len(l.text) && isWordByte(l.text[l.at]) {
			l.at++
		}
	case c == '$' && l.heredoc():
		kind = tokenString
	default:
		l.at++
		switch c {
		case '(', '[', '{':
			l.depth++
		case ')', ']', '}':
			l.depth = max(0, l.depth-1)
		}
	}
	return token{kind: kind, start: start, end: l.at, src: l.text[start:l.at]}
}

func isWordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (l *lexer) skipBlank() {
	for l.at < len(l.text) {
		rest := l.text[l.at:]
		switch {
		case bytes.IndexByte([]byte(" \t\n\r\f\v\x00"), rest[0]) >= 0:
			l.at++
		case bytes.HasPrefix(rest, []byte("--")), bytes.HasPrefix(rest, []byte("# ")), bytes.HasPrefix(rest, []byte("#!")):
			l.skipPast("\n")
		case bytes.HasPrefix(rest, []byte("/*")):
			l.skipComment()
		default:
			return
		}
	}
}

func (l *lexer) skipPast(end string) {
	i := bytes.Index(l.text[l.at:], []byte(end))
	if i < 0 {
		l.at = len(l.text)
		return
	}
	l.at += i + len(end)
}

// skipComment skips a /* comment */, which may nest.
func (l *lexer) skipComment() {
	for open := 0; l.at < len(l.text); {
		switch rest := l.text[l.at:]; {
		case bytes.HasPrefix(rest, []byte("/*")):
			open++
			l.at += 2
		case bytes.HasPrefix(rest, []byte("*/")):
			open--
			l.at += 2
			if open == 0 {
				return
			}
		default:
			l.at++
		}
	}
}

// quoted skips to the closing quote. A backslash or a doubled quote keeps the next character inside.
func (l *lexer) quoted(quote byte) {
	for l.at++; l.at < len(l.text); l.at++ {
		switch l.text[l.at] {
		case '\\':
			l.at++
		case quote:
			if l.at+1 < len(l.text) && l.text[l.at+1] == quote {
				l.at++
				continue
			}
			l.at++
			return
		}
	}
	l.at = len(l.text)
}

// heredoc skips $tag$ … $tag$.
func (l *lexer) heredoc() bool {
	rest := l.text[l.at:]
	i := 1
	for i < len(rest) && isWordByte(rest[i]) {
		i++
	}
	if i >= len(rest) || rest[i] != '$' {
		return false
	}
	tag := rest[:i+1]
	end := bytes.Index(rest[len(tag):], tag)
	if end < 0 {
		return false
	}
	l.at += len(tag) + end + len(tag)
	return true
}
