package gateway

import (
	"bytes"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"verbatim.dev/projections/execution"
	"verbatim.dev/services/artifact"
)

func TestRecordedFiles(t *testing.T) {
	t.Parallel()
	const id = "01a21000-0000-7000-8000-000000000002"
	store, err := artifact.Open(t.Context(), "file://"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	want := []byte(strings.Repeat("0123456789", 50_000))
	keys := map[string]string{}
	for _, compression := range []string{artifact.Plain, artifact.Zstd} {
		key, err := artifact.Attempt{Execution: id, Number: 1}.Key("stdout", compression)
		if err != nil {
			t.Fatal(err)
		}
		w, err := store.Create(t.Context(), key, 0)
		if err != nil {
			t.Fatal(err)
		}
		data := want
		if compression == artifact.Zstd {
			e, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			data = e.EncodeAll(want, nil)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		keys[compression] = key
	}
	size := uint64(len(want))
	reading := func(uri string, bytes uint64) *reading {
		g := &Gateway{d: Deps{Artifacts: store}}
		g.c.Logger = slog.New(slog.DiscardHandler)
		return &reading{g: g, outputInput: outputInput{ID: id, Stream: "stdout", Attempt: 1}, row: execution.Row{StdoutLog: &uri, StdoutLogBytes: &bytes}}
	}
	for compression, key := range keys {
		f := reading(store.URI(key), size).recorded(t.Context(), int64(size))
		if f == nil {
			t.Fatalf("%q: it is not found", compression)
		}
		for range 20 {
			from := rand.IntN(len(want))
			n := rand.IntN(len(want) - from)
			if _, err := f.Seek(int64(from), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, want[from:from+n]) {
				t.Errorf("%q: %d bytes from %d: %v", compression, n, from, err)
			}
		}
		f.close()
	}
	// Who can write facts can name any file: none but the execution's own is opened.
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, uri := range []string{"file://" + outside, "http://127.0.0.1/x", store.URI("../passwd"), store.URI(keys[artifact.Plain]) + "x"} {
		if reading(uri, size).recorded(t.Context(), int64(size)) != nil {
			t.Errorf("%s is opened", uri)
		}
	}
	// The row has more bytes than the file: it is not made again yet.
	if reading(store.URI(keys[artifact.Plain]), size+1).recorded(t.Context(), int64(size+1)) != nil {
		t.Error("a file that lacks a byte is served")
	}
	// The file is shorter than its size says.
	f := &file{artifacts: store, ctx: t.Context(), key: keys[artifact.Plain], size: int64(size) + 5}
	if _, err := io.Copy(io.Discard, f); err == nil || f.failure() == nil {
		t.Error("a file that ends early is no error")
	}
	f.close()
}
