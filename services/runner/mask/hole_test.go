package mask_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"verbatim.dev/services/runner/mask"
)

// through passes parts through a stream and returns the whole result, with the ranges from the stream's beginning on.
func through(s *mask.Stream, parts ...[]byte) (string, []mask.Range) {
	var out []byte
	var ranges []mask.Range
	for i := range len(parts) + 1 {
		step := s.Close
		if i < len(parts) {
			step = func() ([]byte, []mask.Range) { return s.Write(parts[i]) }
		}
		decided, masked := step()
		out, ranges = append(out, decided...), append(ranges, masked...)
	}
	return string(out), ranges
}

func TestTheRestOfAValueIsHiddenAfterAHole(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ values, text, want string }{
		"nothing":           {"abcde", "", ""},
		"something else":    {"abcde", "xyz abcd", "xyz abcd"},
		"its last byte":     {"abcde", "ex", "*x"},
		"its rest":          {"abcde", "cdex", "***x"},
		"its rest and end":  {"abcde", "bcde", "****"},
		"its middle":        {"abcde", "bcdx", "bcdx"},
		"its middle, end":   {"abcde", "bcd", "bcd"},
		"the whole":         {"abcde", "abcdex", "*****x"},
		"its rest, again":   {"abcde", "deabcde de", "******* de"},
		"the longest":       {"ababa|xxba", "babab", "****b"},
		"overlaps a whole":  {"babab|abac", "babacx", "*****x"},
		"of another":        {"abcde|wxyde", "yde", "***"},
		"one in the other":  {"aaaa", "aaab", "***b"},
		"the whole, longer": {"aaaa", "aaaaab", "*****b"},
		"before a whole":    {"abcd|dxyz", "bcdxyzq", "******q"},
		"no secrets":        {"", "abc", "abc"},
	} {
		s := masker(t, strings.Split(c.values, "|")...).StreamAfterHole(7)
		got, ranges := through(s, []byte(c.text))
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if strings.HasPrefix(c.want, "*") && (len(ranges) == 0 || ranges[0].Start != 7) {
			t.Errorf("%s: the ranges are %v", name, ranges)
		}
	}
}

// Only what may be the rest of a value waits.
func TestAfterAHoleNothingWaitsLongerThanItMust(t *testing.T) {
	t.Parallel()
	s := masker(t, "abcde").StreamAfterHole(100)
	for _, step := range []struct{ write, decided string }{
		{"", ""}, {"b", ""}, {"cd", ""}, {"x", "bcdx"}, {"de", "de"}, {"abcd", ""}, {"e", "*****"},
	} {
		if decided, _ := s.Write([]byte(step.write)); string(decided) != step.decided {
			t.Errorf("after %q: %q is decided, want %q", step.write, decided, step.decided)
		}
	}
}

// However what comes after a hole is split: the longest end of a form that it begins with is hidden, and else what is hidden
// without a hole.
func TestAHoleHidesTheLongestEndOfAForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 4, 9, -1)
		var secrets []mask.Secret
		var forms [][]byte
		for _, v := range rapid.SliceOfN(letters, 1, 3).Draw(t, "values") {
			secrets = append(secrets, mask.Secret{Name: v, Value: []byte(v)})
			forms = append(forms, mask.Forms([]byte(v))...)
		}
		m, _, err := mask.New(secrets)
		if err != nil {
			t.Fatal(err)
		}
		text := []byte(rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 0, 40, -1).Draw(t, "text"))
		if rapid.Bool().Draw(t, "rest") {
			form := rapid.SampledFrom(forms).Draw(t, "form")
			text = slices.Concat(form[rapid.IntRange(0, len(form)-1).Draw(t, "from"):], text)
		}
		rest := 0
		for _, form := range forms {
			for n := range min(len(form), len(text)+1) {
				if bytes.HasSuffix(form, text[:n]) {
					rest = max(rest, n)
				}
			}
		}
		plain, _ := through(m.Stream(5), text)
		want := strings.Repeat("*", rest) + plain[rest:]
		var parts [][]byte
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "part")
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		got, ranges := through(m.StreamAfterHole(5), parts...)
		if got != want {
			t.Fatalf("%q in parts %q with %q: %q, want %q", text, parts, secrets, got, want)
		}
		marked := bytes.Clone(text)
		for i, r := range ranges {
			if i > 0 && r.Start < ranges[i-1].End {
				t.Fatalf("ranges %v overlap", ranges)
			}
			copy(marked[r.Start-5:r.End-5], bytes.Repeat([]byte("*"), int(r.End-r.Start)))
		}
		if string(marked) != got {
			t.Fatalf("ranges %v do not say what was masked: %q", ranges, got)
		}
		for _, form := range forms {
			for n := mask.MinBytes; n <= len(form); n++ {
				if strings.HasPrefix(got, string(form[len(form)-n:])) {
					t.Fatalf("%q still begins with the end of %q", got, form)
				}
			}
		}
	})
}

// The worst values and the smallest parts: with anything but linear time this test does not end.
func TestAfterAHoleTheLongestValueIsLookedForOnce(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("a", mask.MaxBytes)
	m := masker(t, value, value[1:]+"b")
	s := m.StreamAfterHole(0)
	for i := range mask.MaxBytes - 1 {
		if decided, _ := s.Write([]byte("a")); len(decided) > 0 {
			t.Fatalf("after %d bytes %d are decided", i+1, len(decided))
		}
	}
	if decided, _ := s.Close(); string(decided) != strings.Repeat("*", mask.MaxBytes-1) {
		t.Error("the rest is not hidden")
	}
}
