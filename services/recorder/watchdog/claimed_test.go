package watchdog

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"verbatim.dev/events/kafka"
)

// The evidence has the name of who claimed, also when others have claimed since.
func TestWhoClaimed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		metadata string
		claimed  int64 // the offset
		want     string
	}{
		{"r2@3 r1@0", 4, "r2"},
		{"r2@3 r1@0", 2, "r1"},
		{"r2@3", 2, ""},
		{"r2", 4, "r2"}, // of an older version
		{"r2", 3, ""},
		{"", 4, ""},
	} {
		w := &Watchdog{runners: map[string]*runner{}, queues: 1}
		o := entry{stage: prepared, work: c.claimed + 1}
		if !w.taken(uuid.New(), &o, time.Second, map[int]kafka.Commit{0: {Offset: 5, Metadata: c.metadata}}) {
			t.Errorf("%q: %d is claimed", c.metadata, c.claimed)
		}
		got := ""
		if o.runner != nil {
			got = o.runner.id
		}
		if got != c.want {
			t.Errorf("%q: %d was claimed by %q, want %q", c.metadata, c.claimed, got, c.want)
		}
	}
}
