package runner_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/secret"
	"verbatim.dev/services/runner"
)

// sealed encrypts values for a runner.
func sealed(t *testing.T, f fixture, values map[string]string) map[string][]byte {
	t.Helper()
	recipient, err := os.ReadFile(filepath.Join(f.data, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	return sealedFor(t, strings.TrimSpace(string(recipient)), values)
}

func sealedFor(t *testing.T, recipient string, values map[string]string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for name, value := range values {
		file, err := secret.Seal([]string{recipient}, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	return files
}

// The document is what a JSON reader makes the values of, and one line, whatever is in them.
func TestSecretsReachTheProcessAsOneLine(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	values := map[string]string{"B": "two\r\nlines\x00\x01\x7f\t\b\f \"quoted\\\" </script> & ü € 𝄞 \u2028", "A": "hunter2-hunter2"}
	spec := shell(`sha256sum; readlink /proc/self/fd/0`)
	spec.Secrets = sealed(t, f, values)
	s := f.log.tell(t, f.start(t, spec))
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(map[string]any{"parameters": map[string]any{}, "secrets": values}); err != nil {
		t.Fatal(err)
	}
	// Go's encoder escapes U+2028 for the sake of JavaScript; JSON does not ask for it.
	line := strings.ReplaceAll(want.String(), `\u2028`, "\u2028")
	for _, text := range []string{fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(line))), "pipe:["} {
		if !strings.Contains(string(s.output[stdout]), text) {
			t.Errorf("output %q has no %q", s.output[stdout], text)
		}
	}
	if started := one[*executionv1.ProcessStarted](t, s); len(started.GetUnmaskedSecrets()) > 0 {
		t.Errorf("%v", started)
	}
}

func TestASecretTooShortToBeMaskedIsNamed(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	spec := shell(`cat >/dev/null`)
	spec.Secrets = sealed(t, f, map[string]string{"PIN": "42", "TOKEN": "hunter2-hunter2"})
	if started := one[*executionv1.ProcessStarted](t, f.log.tell(t, f.start(t, spec))); !slices.Equal(started.GetUnmaskedSecrets(), []string{"PIN"}) {
		t.Errorf("%v", started)
	}
}

func TestASecretThatCannotBeHadIsAFailedStartThatShowsNothing(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	foreign := sealedFor(t, stranger.Recipient().String(), map[string]string{"TOKEN": "hunter2-hunter2"})["TOKEN"]
	good := sealed(t, f, map[string]string{"TOKEN": "hunter2-hunter2"})["TOKEN"]
	half := sealed(t, f, map[string]string{"A": strings.Repeat("hunter2", 5000), "B": strings.Repeat("hunter2", 5000)})
	for name, c := range map[string]struct {
		secrets map[string][]byte
		says    string
	}{
		"for another":   {map[string][]byte{"TOKEN": foreign}, "secret TOKEN: it is not encrypted for this runner's key"},
		"one of them":   {map[string][]byte{"A": good, "TOKEN": foreign}, "secret TOKEN: it is not"},
		"cut":           {map[string][]byte{"TOKEN": good[:len(good)-1]}, "secret TOKEN: it cannot be decrypted"},
		"in clear":      {map[string][]byte{"TOKEN": []byte("hunter2-hunter2")}, "secret TOKEN is no age file"},
		"bad name":      {map[string][]byte{"hunter2-hunter2": good}, "a secret's name"},
		"too much":      {half, "secret B: secrets may have"},
		"no text":       {sealed(t, f, map[string]string{"TOKEN": "hunter2\xff"}), "not UTF-8"},
		"nothing in it": {sealed(t, f, map[string]string{"TOKEN": ""}), "1 to 65536 bytes"},
	} {
		spec := shell(`echo never`)
		spec.Secrets = c.secrets
		s := f.log.tell(t, f.start(t, spec))
		failed := one[*executionv1.StartFailed](t, s)
		if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_SECRET || !strings.Contains(failed.GetMessage(), c.says) {
			t.Errorf("%s: %v, want %q", name, failed, c.says)
		}
		for _, file := range c.secrets {
			if text := failed.GetMessage(); strings.Contains(text, "hunter2") || strings.Contains(text, base64.StdEncoding.EncodeToString(file)[:16]) {
				t.Errorf("%s: the failure shows it: %s", name, text)
			}
		}
	}
}

// While the process has not taken its document, and after, no file of the runner holds a value.
func TestSecretsAreInNoFile(t *testing.T) {
	t.Parallel()
	f := newRunner(t, nil)
	value := strings.Repeat("hunter2-hunter2 ", 1000)
	spec := shell(`echo here; sleep 0.3; wc -c`)
	spec.Secrets = sealed(t, f, map[string]string{"TOKEN": value, "OTHER": strings.Repeat("x", 40_000)})
	id := f.start(t, spec)
	look := func() {
		t.Helper()
		err := filepath.WalkDir(f.data, func(path string, d fs.DirEntry, gone error) error {
			if gone == nil && d.Type().IsRegular() {
				if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte("hunter2")) {
					t.Errorf("%s holds the value", path)
				}
			}
			return nil // Some of it goes while it is looked for.
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.log.awaitOutput(t, id, stdout, "here")
	look()
	f.log.tell(t, id)
	look()
}

// uploads is a Config.Upload.
type uploads func(ctx context.Context, u *executionv1.StdinUpload, take func(uint64, []byte) error) error

func uploaded(t *testing.T, f uploads) fixture {
	t.Helper()
	return newRunner(t, func(c *runner.Config) { c.Upload = f })
}

func uploadOf(data []byte) *executionv1.StdinUpload {
	digest := sha256.Sum256(data)
	return &executionv1.StdinUpload{Upload: "u", StartOffset: 3, EndOffset: 9, SizeBytes: uint64(len(data)), Sha256: digest[:]}
}

func TestAnUploadIsTheStandardInputOrTheStartFails(t *testing.T) {
	t.Parallel()
	data := noise(5, 5<<20/2)
	const part = events.MaxChunkBytes
	for name, c := range map[string]struct {
		parts [][2]int // from, to
		err   error
		says  string // "" when it works
	}{
		"in order":   {parts: [][2]int{{0, part}, {part, 2 * part}, {2 * part, len(data)}}},
		"some twice": {parts: [][2]int{{0, part}, {0, part}, {part, 2 * part}, {0, part}, {part, 2 * part}, {2 * part, len(data)}}},
		"a hole":     {parts: [][2]int{{0, part}, {2 * part, len(data)}}, says: "no more in the log"},
		"no end":     {parts: [][2]int{{0, part}}, says: "no more in the log"},
		"nothing":    {says: "no more in the log"},
		"gone":       {err: runner.ErrUploadGone, says: "no more in the log"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := uploaded(t, func(_ context.Context, u *executionv1.StdinUpload, take func(uint64, []byte) error) error {
				if u.GetStartOffset() != 3 || u.GetEndOffset() != 9 {
					t.Errorf("%v", u)
				}
				for _, p := range c.parts {
					if err := take(uint64(p[0]), data[p[0]:p[1]]); err != nil {
						return err
					}
				}
				return c.err
			})
			spec := shell(`sha256sum`)
			spec.StdinUpload = uploadOf(data)
			s := f.log.tell(t, f.start(t, spec))
			if c.says == "" {
				if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); string(s.output[stdout]) != want {
					t.Errorf("the process read %q, want %q", s.output[stdout], want)
				}
				return
			}
			failed := one[*executionv1.StartFailed](t, s)
			if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_STDIN || !strings.Contains(failed.GetMessage(), c.says) {
				t.Errorf("%v, want %q", failed, c.says)
			}
		})
	}
	t.Run("other bytes", func(t *testing.T) {
		t.Parallel()
		f := uploaded(t, func(_ context.Context, _ *executionv1.StdinUpload, take func(uint64, []byte) error) error {
			return take(0, []byte("tampered"))
		})
		spec := shell(`sha256sum`)
		spec.StdinUpload = uploadOf([]byte("original"))
		if failed := one[*executionv1.StartFailed](t, f.log.tell(t, f.start(t, spec))); !strings.Contains(failed.GetMessage(), "the request says 8 with") {
			t.Errorf("%v", failed)
		}
	})
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		f := uploaded(t, nil)
		spec := shell(`sha256sum`)
		spec.StdinUpload = &executionv1.StdinUpload{SizeBytes: events.MaxStdinBytes + 1}
		if failed := one[*executionv1.StartFailed](t, f.log.tell(t, f.start(t, spec))); !strings.Contains(failed.GetMessage(), "the limit is") {
			t.Errorf("%v", failed)
		}
	})
}

// A broker that is away while an upload is fetched holds up that attempt alone, until a cancel.
func TestACancelEndsTheWaitForAnUpload(t *testing.T) {
	t.Parallel()
	waits := make(chan struct{}, 1)
	f := uploaded(t, func(ctx context.Context, _ *executionv1.StdinUpload, _ func(uint64, []byte) error) error {
		waits <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	spec := shell(`cat`)
	spec.StdinUpload = uploadOf([]byte("x"))
	id := f.start(t, spec)
	<-waits
	f.Cancel(id, "somebody", "enough")
	failed := one[*executionv1.StartFailed](t, f.log.tell(t, id))
	if failed.GetReason() != executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED || !strings.Contains(failed.GetMessage(), "by somebody: enough") {
		t.Errorf("%v", failed)
	}
}

// A runner that has to be gone leaves an attempt that waits for its upload to the next start, which goes on with it.
func TestAnUploadIsFetchedByTheNextStart(t *testing.T) {
	t.Parallel()
	l, data := newLog(), t.TempDir()
	waits := make(chan struct{}, 1)
	open := func(u uploads) *runner.Runner {
		t.Helper()
		return open(t, l, data, u)
	}
	first := open(func(ctx context.Context, _ *executionv1.StdinUpload, _ func(uint64, []byte) error) error {
		waits <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	spec := shell(`cat`)
	spec.StdinUpload = uploadOf([]byte("at last"))
	m, id := prepared(t, spec)
	if err := first.Handle(m); err != nil {
		t.Fatal(err)
	}
	<-waits
	ending, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := first.Stop(ending); err == nil || errors.Is(err, runner.ErrLocked) {
		t.Fatalf("stopped with %v", err)
	}
	second := open(func(_ context.Context, _ *executionv1.StdinUpload, take func(uint64, []byte) error) error {
		return take(0, []byte("at last"))
	})
	if err := second.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := l.tell(t, id); string(s.output[stdout]) != "at last" {
		t.Errorf("%q", s.output[stdout])
	}
	if err := second.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, l *log, data string, u uploads) *runner.Runner {
	t.Helper()
	r, err := runner.New(runner.Config{ID: "r1", Host: "h1", DataDir: data, Upload: u, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, l,
		func(context.Context, *message.Message) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return r
}
