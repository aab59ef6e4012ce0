package mask_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"verbatim.dev/services/runner/mask"
)

func masker(t testing.TB, values ...string) *mask.Masker {
	t.Helper()
	var secrets []mask.Secret
	for i, v := range values {
		secrets = append(secrets, mask.Secret{Name: fmt.Sprint("S", i), Value: []byte(v)})
	}
	m, _, err := mask.New(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// split masks a text given in parts and returns the whole result.
func split(m *mask.Masker, parts ...[]byte) (string, []mask.Range) {
	var out []byte
	var ranges []mask.Range
	s := m.Stream(0)
	take := func(decided []byte, masked []mask.Range) {
		out, ranges = append(out, decided...), append(ranges, masked...)
	}
	for _, p := range parts {
		take(s.Write(p))
	}
	take(s.Close())
	return string(out), ranges
}

func TestValuesAreHidden(t *testing.T) {
	t.Parallel()
	const value = "correct horse/battery+staple?"
	pem := "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\nx1y2z3a4b5c6d7e8\n-----END KEY-----\n"
	for name, c := range map[string]struct{ values, text, want string }{
		"as it is":     {value, "a " + value + " b", "a ***************************** b"},
		"at both ends": {"abcd", "abcdxabcd", "****x****"},
		"twice":        {"abcd", "abcdabcd", "********"},
		"overlapping":  {"abab", "xababab y", "x****** y"},
		"nested":       {"abcdef|cd12", "abcd12 abcdef", "ab**** ******"},
		"prefix only":  {"abcdef", "abcde abcdex abcde", "abcde abcdex abcde"},
		"false start":  {"aabaaab", "aabaabaaab", "aab*******"},
		"query":        {value, "?p=" + url.QueryEscape(value) + "&x", "?p=" + strings.Repeat("*", len(url.QueryEscape(value))) + "&x"},
		"path":         {value, "/" + url.PathEscape(value), "/" + strings.Repeat("*", len(url.PathEscape(value)))},
		"json":         {"a\"b\\c\nd", `{"v":"a\"b\\c\nd"}`, `{"v":"**********"}`},
		"trimmed":      {"s3cr3t\n", "[s3cr3t]", "[******]"},
		"lines":        {pem, "  MIIEpAIBAAKCAQEA|\n\tx1y2z3a4b5c6d7e8", "  ****************|\n\t****************"},
		"crlf":         {"abcd\nefgh", "abcd\r\nefgh", "**********"},
		"binary":       {"\x00\xff\xfe\x01", "a\x00\xff\xfe\x01b", "a****b"},
		"too short":    {"abc", "abc", "abc"},
		"nothing":      {"", "abc", "abc"},
	} {
		if got, _ := split(masker(t, strings.Split(c.values, "|")...), []byte(c.text)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Encoded as a part of a longer text, a value's own bits still stand in the base64, wherever it begins.
func TestBase64IsHiddenInEveryPosition(t *testing.T) {
	t.Parallel()
	const value = "correct horse battery staple"
	m := masker(t, value)
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
		for before := range 7 {
			for after := range 4 {
				text := strings.Repeat("u", before) + value + strings.Repeat("\xff", after)
				got, _ := split(m, []byte(encoding.EncodeToString([]byte(text))))
				decoded, _ := base64.RawStdEncoding.DecodeString(strings.Map(func(r rune) rune {
					switch r {
					case '*':
						return 'A'
					case '=':
						return -1
					}
					return r
				}, got))
				// What is left in clear has at most a byte of the value on each side.
				for n := range len(value) - 2 {
					if bytes.Contains(decoded, []byte(value[n:n+3])) {
						t.Fatalf("%d before, %d after: %q still gives %q", before, after, got, value[n:n+3])
					}
				}
			}
		}
	}
}

func TestWhatCannotBeMaskedIsNamed(t *testing.T) {
	t.Parallel()
	_, unmasked, err := mask.New([]mask.Secret{
		{Name: "PIN", Value: []byte("42")}, {Name: "KEY", Value: []byte("long enough")}, {Name: "FILE", Value: []byte("abc\n")}, {Name: "CODE", Value: []byte("abcd\n")},
	})
	if err != nil || !slices.Equal(unmasked, []string{"PIN", "FILE"}) {
		t.Errorf("%v, %v", unmasked, err)
	}
	if _, _, err = mask.New([]mask.Secret{{Name: "BIG", Value: make([]byte, mask.MaxBytes+1)}}); err == nil || !strings.Contains(err.Error(), "BIG") {
		t.Errorf("a value past the limit: %v", err)
	}
	if text := fmt.Sprintf("%v %+v %#v", masker(t, "hidden"), masker(t, "hidden"), masker(t, "hidden")); strings.Contains(text, "104") || strings.Contains(text, "nodes") {
		t.Errorf("a masker shows itself: %s", text)
	}
}

func TestTheBeginningOfAValueIsHeldBack(t *testing.T) {
	t.Parallel()
	s := masker(t, "abcdef").Stream(100)
	for _, step := range []struct{ write, decided string }{
		{"xabc", "x"}, {"de", ""}, {"f", "******"}, {"abc", ""}, {"x", "abcx"}, {"abcde", ""},
	} {
		if decided, _ := s.Write([]byte(step.write)); string(decided) != step.decided {
			t.Errorf("after %q: %q is decided, want %q", step.write, decided, step.decided)
		}
	}
	if decided, masked := s.Close(); string(decided) != "abcde" || len(masked) != 0 {
		t.Errorf("at the end: %q, %v", decided, masked)
	}
}

// However a text is split, the result is the same: as long as the text, masked where a value stands and nowhere else,
// and with the ranges reported.
func TestSplittingChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 4, 9, -1)
		values := rapid.SliceOfN(letters, 1, 3).Draw(t, "values")
		text := []byte(rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 0, 80, -1).Draw(t, "text"))
		var secrets []mask.Secret
		for _, v := range values {
			secrets = append(secrets, mask.Secret{Name: v, Value: []byte(v)})
		}
		m, _, err := mask.New(secrets)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(text)
		for _, v := range values {
			for i := range len(text) - len(v) + 1 {
				if bytes.HasPrefix(text[i:], []byte(v)) {
					copy(want[i:], strings.Repeat("*", len(v)))
				}
			}
		}
		var parts [][]byte
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "part")
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		got, ranges := split(m, parts...)
		if got != string(want) {
			t.Fatalf("%q in parts %q with %q: %q, want %q", text, parts, values, got, want)
		}
		marked := bytes.Clone(text)
		for _, r := range ranges {
			copy(marked[r.Start:r.End], bytes.Repeat([]byte("*"), int(r.End-r.Start)))
		}
		if string(marked) != got {
			t.Fatalf("ranges %v do not say what was masked: %q", ranges, got)
		}
	})
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("secret"), []byte("a secret and a secre"), uint8(3))
	f.Add([]byte("a\nlonger one\r\nof lines\n"), []byte("longer one of lines"), uint8(1))
	f.Add([]byte("\xff\x00\xff\x00"), []byte("\xff\x00\xff\x00\xff\x00"), uint8(2))
	f.Fuzz(func(t *testing.T, value, text []byte, step uint8) {
		m, unmasked, err := mask.New([]mask.Secret{{Name: "S", Value: value}})
		if err != nil {
			return
		}
		var parts [][]byte
		for rest := text; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		whole, _ := split(m, text)
		got, _ := split(m, parts...)
		if got != whole || len(got) != len(text) {
			t.Fatalf("%q in parts is %q, as a whole %q", text, got, whole)
		}
		if len(unmasked) == 0 && len(value) >= mask.MinBytes && !bytes.Contains(value, []byte("*")) && strings.Contains(got, string(value)) {
			t.Fatalf("%q still shows %q", got, value)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	m := masker(b, "correct horse battery staple", strings.Repeat("x7", 100))
	text := bytes.Repeat([]byte("an ordinary line of output, as programs write them\n"), 5000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		m.Stream(0).Write(text)
	}
}
