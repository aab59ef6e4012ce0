package journal_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"verbatim.dev/services/runner/journal"
)

func entries() []journal.Entry {
	at := time.Unix(1_700_000_000, 123).UTC()
	return []journal.Entry{
		{Launch: &journal.Launch{Execution: "e", Attempt: 1, Payload: []byte{0, 255}, Placed: true, Partition: 3, Offset: 9, At: at}},
		{Claimed: true},
		{Fact: &journal.Fact{Sequence: 1, Name: "ProcessStarted", At: at, Payload: []byte("x")}},
		{Chunk: &journal.Chunk{Sequence: 2, Stream: 1, Offset: 7, Length: 5, At: at, CRC: 77, Digest: []byte("state")}},
		{Acked: 2},
	}
}

func write(t testing.TB, path string, list []journal.Entry) {
	t.Helper()
	j, _, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, e := range list {
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []journal.Entry {
	t.Helper()
	j, list, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWhatIsAppendedIsRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	write(t, path, entries()[:2])
	write(t, path, entries()[2:])
	if diff := cmp.Diff(entries(), read(t, path)); diff != "" {
		t.Error(diff)
	}
}

// Cut anywhere, with anything behind the cut: what was whole before is read, and appending goes on from there.
func TestTornTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	all := entries()
	ends := []int{0}
	for i := range all {
		_ = os.Remove(path)
		write(t, path, all[:i+1])
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, int(info.Size()))
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(r *rapid.T) {
		cut := rapid.IntRange(0, len(whole)).Draw(r, "cut")
		junk := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(r, "junk")
		want := 0
		for want < len(all) && ends[want+1] <= cut {
			want++
		}
		if err := os.WriteFile(path, append(whole[:cut:cut], junk...), 0o600); err != nil {
			r.Fatal(err)
		}
		got := read(t, path)
		if len(got) < want || len(junk) == 0 && len(got) != want {
			r.Fatalf("cut at %d: %d entries, want %d", cut, len(got), want)
		}
		if diff := cmp.Diff(all[:len(got)], got, cmpopts.EquateEmpty()); diff != "" {
			r.Fatal(diff)
		}
		write(t, path, []journal.Entry{{Acked: 99}})
		if again := read(t, path); len(again) != len(got)+1 || again[len(got)].Acked != 99 {
			r.Fatalf("after the cut %d entries and one more are %d", len(got), len(again))
		}
	})
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "exit")
	for _, text := range []string{"first", "second"} {
		if err := journal.WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := os.Stat(path + ".new"); !os.IsNotExist(err) {
		t.Error("the file beside it is left behind")
	}
}
