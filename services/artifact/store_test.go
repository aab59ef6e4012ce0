package artifact_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/services/artifact"
	"verbatim.dev/services/artifact/s3test"
)

func open(t *testing.T, url string) *artifact.Store {
	t.Helper()
	s, err := artifact.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

const id = "01a21000-0000-7000-8000-000000000002"

func TestKeys(t *testing.T) {
	t.Parallel()
	a := artifact.Attempt{Execution: id, Number: 3}
	key, err := a.Key("stdout", artifact.Plain)
	if err != nil || key != "2026-11-24/"+id+"/3/stdout.log" {
		t.Error(key, err)
	}
	if key, err = a.Key("stderr", artifact.Zstd); err != nil || !strings.HasSuffix(key, "/3/stderr.log.zst") {
		t.Error(key, err)
	}
	key, err = a.PartKey("stdout", 77)
	if err != nil || !strings.HasSuffix(key, "/3/stdout.log.parts/00000000000000000077") {
		t.Error(key, err)
	}
	if at, ok := artifact.ParsePart(key); !ok || at != 77 {
		t.Error(at, ok)
	}
	if _, ok := artifact.ParsePart(key + ".18ab.tmp"); ok {
		t.Error("a temporary file is taken for a part")
	}
	for _, bad := range []artifact.Attempt{
		{Execution: "../../../etc/passwd", Number: 1},
		{Execution: id + "/../x", Number: 1},
		{Execution: strings.ToUpper(id), Number: 1},
		{Execution: "", Number: 1},
		{Execution: id, Number: 0},
		{Execution: "{" + id + "}", Number: 1},
		{Execution: id + "\x00", Number: 1},
	} {
		if key, err := bad.Key("stdout", artifact.Plain); err == nil {
			t.Errorf("%q became %q", bad.Execution, key)
		}
	}
	if key, err := a.Key("../stdout", artifact.Plain); err == nil {
		t.Error(key)
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"":                                     "no URL",
		"/var/lib/artifacts":                   "no URL",
		"file://host/dir":                      "absolute path",
		"file:///dir?metadata=skip":            `takes no "metadata"`,
		"file:///dir?prefix=../":               "prefix must be like",
		"s3://bucket/folder":                   "without a path",
		"s3://bucket?prefix=folder":            "prefix must be like",
		"s3://key:word@bucket":                 "credentials come from the environment",
		"s3://bucket?endpoint=http://a:word@b": "without a user",
		"s3://":                                "URL of a bucket",
		"mem://":                               "no kind of store",
		"gs://bucket":                          "-tags gcs",
		"s3://bucket\x7f:word@":                "no URL",
	} {
		err := artifact.Validate(url)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "word") {
			t.Errorf("%q: %v, which does not speak of %q", url, err, says)
		}
	}
	for _, url := range []string{"file:///dir", "file:///dir?prefix=a/b/", "s3://bucket?region=eu-central-1&prefix=x/", "azblob://container"} {
		if err := artifact.Validate(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, "file://"+dir+"/a?prefix=b/")
	conformance(t, s, 300_000)
	if want := "file://" + dir + "/a/b/x"; s.URI("x") != want {
		t.Errorf("URI %s, want %s", s.URI("x"), want)
	}
	// Nothing is left of what was removed, no folder either.
	left, err := os.ReadDir(filepath.Join(dir, "a/b"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v: %v", left, err)
	}
}

// conformance is what makers and readers rely on, of every kind of store.
func conformance(t *testing.T, s *artifact.Store, size int) {
	t.Helper()
	ctx := t.Context()
	// Many ask at once, and one that was killed left its question behind: nothing stays.
	if w, err := s.Create(ctx, "verbatim-probe", 0); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	checks := make(chan error, 8)
	for range cap(checks) {
		go func() { checks <- s.Check(ctx) }()
	}
	for range cap(checks) {
		if err := <-checks; err != nil {
			t.Fatal(err)
		}
	}
	if err := s.List(ctx, "", func(o artifact.Object) error { return errors.New(o.Key + " is left") }); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	put := func(key string, data []byte) {
		t.Helper()
		w, err := s.Create(ctx, key, uint64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Size(ctx, key); data != nil && key != "d/replaced" && !errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("%s is seen before it is whole: %v", key, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	put("d/object", want)
	put("d/empty", nil)
	put("d/replaced", []byte("old and longer"))
	put("d/replaced", []byte("new"))
	given, err := s.Create(ctx, "d/given-up", 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := given.Write(want); err != nil {
		t.Fatal(err)
	}
	given.Abort()

	get := func(key string, offset, length int64) []byte {
		t.Helper()
		r, err := s.Read(ctx, key, offset, length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := get("d/object", 0, -1); sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%d bytes of %d came back, or others", len(got), len(want))
	}
	if got := get("d/object", 100_000, 500); !bytes.Equal(got, want[100_000:100_500]) {
		t.Error("a range is not that range")
	}
	if got := get("d/empty", 0, -1); len(got) > 0 {
		t.Errorf("empty is %q", got)
	}
	if got := get("d/replaced", 0, -1); string(got) != "new" {
		t.Errorf("replaced is %q", got)
	}
	sizes := map[string]uint64{}
	var keys []string
	err = s.List(ctx, "d/", func(o artifact.Object) error {
		sizes[o.Key] = o.Size
		keys = append(keys, o.Key)
		return nil
	})
	if err != nil || !slices.Equal(keys, []string{"d/empty", "d/object", "d/replaced"}) || sizes["d/object"] != uint64(size) {
		t.Errorf("%v: %v", sizes, err)
	}
	if n, err := s.Size(ctx, "d/object"); err != nil || n != uint64(size) {
		t.Errorf("%d: %v", n, err)
	}
	for range 2 {
		if err := s.Delete(ctx, append(keys, "d/never")...); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Read(ctx, "d/object", 0, -1); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("read of what was removed: %v", err)
	}
	if _, err := s.Size(ctx, "d/object"); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("size of what was removed: %v", err)
	}
}

// What an operator gets wrong is told from what is away, and both soon.
func TestWhatIsWrongIsSaid(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Open(t.Context(), "file://"+file+"/folder"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a folder in a file: %v", err)
	}
	if err := artifact.Validate("file:///proc/nowhere"); err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Open(t.Context(), "file:///proc/nowhere"); err == nil {
		t.Error("a folder that cannot be made")
	}
}

func TestS3(t *testing.T) {
	server := s3test.New(t)
	server.Start()
	s := open(t, server.URL(s3test.Bucket)+"&prefix=some/where/")
	conformance(t, s, 12<<20) // More than two pieces.
	if want := "s3://artifacts/some/where/x"; s.URI("x") != want {
		t.Errorf("URI %s, want %s", s.URI("x"), want)
	}
	begun := time.Now()
	err := open(t, server.URL("no-such-bucket")).Check(t.Context())
	if err == nil || errors.Is(err, artifact.ErrAway) || !strings.Contains(err.Error(), "s3://no-such-bucket/ cannot be written") {
		t.Errorf("no such bucket: %v", err)
	}
	if err := open(t, strings.Replace(server.URL("b"), "127.0.0.1", "no-such-host.invalid", 1)).Check(t.Context()); err == nil || errors.Is(err, artifact.ErrAway) {
		t.Errorf("no such host: %v", err)
	}
	server.Kill()
	if err := s.Check(t.Context()); !errors.Is(err, artifact.ErrAway) {
		t.Errorf("a server that is away: %v", err)
	}
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("it took %s to find three mistakes", d)
	}
	server.Start()
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("a server that is back: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-word")
	if err := open(t, server.URL(s3test.Bucket)).Check(t.Context()); err == nil || errors.Is(err, artifact.ErrAway) || strings.Contains(err.Error(), "wrong-secret-word") {
		t.Errorf("wrong credentials: %v", err)
	}
}

// A server that takes the connection and never answers is away, and that is known within 10 s, or a little later on a busy machine.
func TestSilentServer(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begun := time.Now()
	err = open(t, "s3://b?region=x&use_path_style=true&endpoint=http://"+l.Addr().String()).Check(t.Context())
	if !errors.Is(err, artifact.ErrAway) || time.Since(begun) > 30*time.Second {
		t.Errorf("%v after %s", err, time.Since(begun))
	}
}
