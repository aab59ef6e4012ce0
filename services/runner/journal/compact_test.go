package journal_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
)

// A journal that is written for ever stays small, and says the same at every moment.
func TestCompactedJournalSaysTheSame(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var most, last int64
	compactions, entries := 0, 0
	add := func(e journal.Entry) {
		t.Helper()
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
		if err := j.Compact(); err != nil {
			t.Fatal(err)
		}
		if entries++; entries%100 > 0 {
			return
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < last {
			compactions++
		}
		last = info.Size()
		most = max(most, last)
	}
	launch := make([]byte, 1<<20)
	add(journal.Entry{Launch: &journal.Launch{Execution: "e", Payload: launch, At: time.Unix(1, 0)}})
	add(journal.Entry{Claimed: true})
	add(journal.Entry{Fact: &journal.Fact{Sequence: 1, Name: "ProcessStarted"}})
	add(journal.Entry{Lost: &journal.Lost{Stream: 1, Start: 3, End: 4}})
	digest := make([]byte, 108)
	const chunks = 30_000
	for n := uint64(2); n < chunks; n++ {
		stream := executionv1.Stream(n%2 + 1)
		if n < 100 {
			stream = 2 // Its last chunk is long ago for the other one.
		}
		digest[0] = byte(n)
		add(journal.Entry{Chunk: &journal.Chunk{Sequence: n, Stream: stream, Offset: n, Length: 1, Digest: digest}})
		if n%3 == 0 {
			add(journal.Entry{Elided: &journal.Elided{Stream: 2, Start: 7, End: n, Whole: digest}})
		}
		if n > 20 && n%5 == 0 {
			add(journal.Entry{Acked: n - 10})
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if compactions < 2 || most > 9<<20 {
		t.Errorf("%d compactions, the journal had up to %d bytes", compactions, most)
	}
	var facts, lost, claimed int
	var acked uint64
	var elided *journal.Elided
	have := map[uint64]*journal.Chunk{}
	for i, e := range read(t, path) {
		switch {
		case e.Launch != nil && (i != 0 || len(e.Launch.Payload) != len(launch)):
			t.Error("the launch is another one")
		case e.Claimed:
			claimed++
		case e.Fact != nil:
			facts++
		case e.Lost != nil:
			lost++
		case e.Chunk != nil:
			have[e.Chunk.Sequence] = e.Chunk
		case e.Elided != nil:
			elided = e.Elided
		case e.Acked > 0:
			acked = e.Acked
		}
	}
	if facts != 1 || lost != 1 || claimed != 1 {
		t.Errorf("%d facts, %d lost, %d claimed", facts, lost, claimed)
	}
	if want := uint64((chunks-1)/5*5 - 10); acked != want {
		t.Errorf("acknowledged up to %d, want %d", acked, want)
	}
	if elided == nil || elided.End != (chunks-1)/3*3 || elided.Whole[0] != byte(elided.End%256) {
		t.Errorf("elided %v", elided)
	}
	// Everything that is not acknowledged, and the last acknowledged chunk of each stream.
	for n := acked - 1; n < chunks; n++ {
		if c := have[n]; c == nil || c.Offset != n || c.Digest[0] != byte(n%256) {
			t.Errorf("chunk %d is %v", n, c)
		}
	}
}
