package claim_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/claim"
)

func TestSign(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, before string
		offset       int64
		want         string
	}{
		{"nothing was committed", "", 0, "r2@0"},
		{"nobody signed", "", 120, "r2@120"},
		{"another one's", "r1@90 r3@40", 120, "r2@120 r1@90 r3@40"},
		{"its own goes on", "r2@90 r3@40", 120, "r2@90 r3@40"},
		{"its own is older", "r1@90 r2@40", 120, "r2@120 r1@90 r2@40"},
		{"an older version's", "r1", 120, "r2@120 r1@119"},
		{"its own of an older version", "r2", 120, "r2@119"},
		{"the group was set back", "r1@90 r3@40 r2@10", 40, "r2@10"},
		{"set back to the beginning", "r1@0", 0, "r2@0"},
		{"no number", "r1@x", 120, "r2@120"},
		{"a number too large", "r1@9223372036854775808", 120, "r2@120"},
		{"a number below 0", "r1@-1", 120, "r2@120"},
		{"no name", "@90", 120, "r2@120"},
		{"a name too long", strings.Repeat("x", 129) + "@90", 120, "r2@120"},
		{"the wrong order", "r1@40 r3@90", 120, "r2@120"},
		{"words", "set by hand", 120, "r2@120"},
		{"a word too long", strings.Repeat("x", 129), 120, "r2@120"},
	} {
		if got := claim.Sign(kafka.Commit{Offset: c.offset, Metadata: c.before}, "r2"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		metadata string
		offset   int64
		want     string
	}{
		{"r2@120 r1@90", 129, "r2"},
		{"r2@120 r1@90", 120, "r2"},
		{"r2@120 r1@90", 119, "r1"},
		{"r2@120 r1@90", 90, "r1"},
		{"r2@120 r1@90", 89, ""},
		{"r2@120 r1@90", 130, ""}, // Nobody has claimed it.
		{"r2", 129, "r2"},
		{"r2", 128, ""},
		{"", 129, ""},
		{"set by hand", 129, ""},
	} {
		if got := claim.Owner(kafka.Commit{Offset: 130, Metadata: c.metadata}, c.offset); got != c.want {
			t.Errorf("%q: offset %d is %q's, want %q", c.metadata, c.offset, got, c.want)
		}
	}
}

// What a commit says of an offset is true, it speaks of the last 16 owners at least, and Kafka takes it.
func TestOwnersAreToldApart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var last kafka.Commit
		var claimed []string         // by offset
		known, newest := []int{}, "" // where the owners began
		for range rapid.IntRange(1, 60).Draw(t, "sessions") {
			runner := rapid.SampledFrom([]string{"a", "b", "c.d_e-9", strings.Repeat("x", 128)}).Draw(t, "runner")
			metadata := claim.Sign(last, runner)
			n := rapid.IntRange(0, 3).Draw(t, "claims")
			if n > 0 && runner != newest {
				known, newest = append(known, len(claimed)), runner
			}
			for range n {
				claimed = append(claimed, runner)
				last = kafka.Commit{Offset: int64(len(claimed)), Metadata: metadata}
			}
			if len(metadata) > 4096 {
				t.Fatalf("has %d bytes", len(metadata))
			}
		}
		for offset, runner := range claimed {
			got := claim.Owner(last, int64(offset))
			if got != runner && (got != "" || offset >= known[max(0, len(known)-16)]) {
				t.Fatalf("%+v: offset %d is %q's, want %q", last, offset, got, runner)
			}
		}
	})
}
