package replay_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"verbatim.dev/events/eventstest"
	"verbatim.dev/services/replay"
)

// FuzzLines: any bytes in the place of an exported file give facts or an error, and the facts survive being exported again.
func FuzzLines(f *testing.F) { fuzzFile(f, "facts.ndjson") }

// FuzzParquet is the same for a Parquet file.
func FuzzParquet(f *testing.F) { fuzzFile(f, "facts.parquet") }

func fuzzFile(f *testing.F, name string) {
	samples := eventstest.Samples()
	for _, part := range [][]int{{0, len(samples)}, {5, 7}, {0, 0}} {
		var file bytes.Buffer
		w := replay.NewWriter(&file, name)
		for _, e := range samples[part[0]:part[1]] {
			if e.AboutExecution() != nil {
				continue
			}
			if err := w.Write(replay.Fact{Event: e, ReceivedAt: eventstest.Time}); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(file.Bytes())
	}
	f.Add([]byte("\n{}\n\n[1]"))
	path := filepath.Join(f.TempDir(), fmt.Sprintf("%d-%s", os.Getpid(), name))
	f.Fuzz(func(t *testing.T, content []byte) {
		facts, _ := read(t, path, content)
		var again bytes.Buffer
		w := replay.NewWriter(&again, name)
		for _, x := range facts {
			if err := w.Write(x); err != nil {
				t.Fatalf("read but not written: %v", err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		same, err := read(t, path, again.Bytes())
		if err != nil {
			t.Fatalf("written but not read: %v", err)
		}
		if diff := cmp.Diff(facts, same, protocmp.Transform()); diff != "" {
			t.Fatalf("(-read +written and read):\n%s", diff)
		}
	})
}

// read returns the facts before the first error.
func read(t *testing.T, path string, content []byte) (facts []replay.Fact, failed error) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for x, err := range replay.File(path).Facts(t.Context(), nil) {
		if err != nil {
			return facts, err
		}
		facts = append(facts, x)
	}
	return facts, nil
}
