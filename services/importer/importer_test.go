package importer_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/importer"
)

// log keeps what is published. before, if not nil, is called before each publish and may fail it.
type log struct {
	before func(batch int) error
	batch  int
	facts  []events.Event
}

func (l *log) PublishContext(_ context.Context, _ string, msgs ...*message.Message) error {
	l.batch++
	if l.before != nil {
		if err := l.before(l.batch); err != nil {
			return err
		}
	}
	for _, m := range msgs {
		e, err := codec.FromMessage(m)
		if err != nil {
			return err
		}
		l.facts = append(l.facts, e)
	}
	return nil
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, dir string) *importer.Folder {
	t.Helper()
	f, err := importer.Open(t.Context(), dir, importer.DefaultNames, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func row(t *testing.T, f *importer.Folder) execution.Row {
	t.Helper()
	var l log
	if err := f.Publish(t.Context(), "facts", &l, importer.Meta{}, nil); err != nil {
		t.Fatal(err)
	}
	return execution.Fold(f.Execution, l.facts)
}

func value[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

// The incident: the worker said that nothing ran, and all output lay there.
func TestTheIncident(t *testing.T) {
	t.Parallel()
	out := strings.Repeat("all of the work was done\n", 40_000)
	dir := folder(t, map[string]string{
		"stdout.log":  out,
		"stderr.log":  "a warning\xff\n",
		"result.json": `{"id":"job-7","status":"error","error":"Execution failed during preparation","exit_code":0,"started_at":"2024-03-01T10:00:00Z","finished_at":"2024-03-01T10:05:00+00:00"}`,
	})
	r := row(t, open(t, dir))
	if r.Status != "failed" || value(r.Reason) != "wait_failed" || value(r.Error) != "wait: Execution failed during preparation" || value(r.ErrorSource) != "wait" || r.ExitCode != nil {
		t.Errorf("the end: %s %v %v %v, exit code %v", r.Status, value(r.Reason), value(r.Error), value(r.ErrorSource), value(r.ExitCode))
	}
	if value(r.StdoutBytes) != uint64(len(out)) || value(r.StderrBytes) != uint64(11) || value(r.Complete) != true || len(r.Missing) > 0 {
		t.Errorf("the output: %v, %v bytes, complete %v, missing %v", value(r.StdoutBytes), value(r.StderrBytes), value(r.Complete), r.Missing)
	}
	if value(r.StartedAt) != time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC) || value(r.EndedAt) != time.Date(2024, 3, 1, 10, 5, 0, 0, time.UTC) {
		t.Errorf("from %v to %v", value(r.StartedAt), value(r.EndedAt))
	}
	if r.Labels["imported_id"] != "job-7" {
		t.Errorf("labels %v", r.Labels)
	}
}

func TestEveryByteIsPublishedAndTwiceIsOnce(t *testing.T) {
	t.Parallel()
	out := bytes.Repeat([]byte("\x00\xff0123456789\n"), 800_000) // More than one batch.
	dir := folder(t, map[string]string{"stdout.log": string(out), "stderr.log": "", "result.json": `{"exit_code":3}`})
	var once, twice log
	if err := open(t, dir).Publish(t.Context(), "facts", &once, importer.Meta{}, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, e := range once.facts {
		if d, ok := e.Data.(*executionv1.OutputChunk); ok {
			if d.GetOffset() != uint64(len(got)) {
				t.Fatalf("a chunk at %d behind %d bytes", d.GetOffset(), len(got))
			}
			got = append(got, d.GetData()...)
		}
	}
	if !bytes.Equal(got, out) {
		t.Errorf("%d bytes of %d, or others", len(got), len(out))
	}
	// Once interrupted in the middle, then whole: the same facts.
	away := errors.New("the log is away")
	twice.before = func(batch int) error {
		if batch == 2 {
			return away
		}
		return nil
	}
	if err := open(t, dir).Publish(t.Context(), "facts", &twice, importer.Meta{}, nil); !errors.Is(err, away) {
		t.Fatalf("with the log away: %v", err)
	}
	if err := open(t, dir).Publish(t.Context(), "facts", &twice, importer.Meta{}, nil); err != nil {
		t.Fatal(err)
	}
	id := once.facts[0].Subject
	a, b := execution.Fold(id, once.facts), execution.Fold(id, twice.facts)
	if a.Version != b.Version || a.Version != uint64(len(once.facts)) || value(b.Complete) != true || value(b.ExitCode) != int32(3) {
		t.Errorf("version %d, after twice %d, of %d facts; complete %v, exit code %v", a.Version, b.Version, len(once.facts), value(b.Complete), value(b.ExitCode))
	}
}

func TestWhatIsBelievedOfAResult(t *testing.T) {
	t.Parallel()
	for result, want := range map[string]string{
		`{"exit_code":0}`:                     "exit code 0",
		`{"exitCode":"7"}`:                    "exit code 7",
		`{"returncode":-9}`:                   "signal KILL",
		`{"rc":3.0}`:                          "exit code 3",
		`{"signal":"SIGTERM","exit_code":-1}`: "signal TERM",
		`{"signal":11}`:                       "signal SEGV",
		`{"status":"success"}`:                "exit code 0",
		`{"status":"Succeeded","exit_code":0,"message":"done"}`: "exit code 0",
		`{"job":"x","result":{"exit_code":4}}`:                  "exit code 4",
		"\xef\xbb\xbf" + `{"exit_code":0}`:                      "exit code 0",
		`{"exit_code":0,"error":""}`:                            "exit code 0",
		`{"exit_code":2,"error":"boom"}`:                        "exit code 2",
		`{"exit_code":0,"error":"boom"}`:                        "not known: boom",
		`{"exit_code":0,"error":{"message":"deep boom"}}`:       "not known: deep boom",
		`{"exit_code":-1}`:                                      "not known: result.json says exit code -1, which is not believed",
		`{"exit_code":3221225477}`:                              "not known: result.json says exit code 3221225477, which is not believed",
		`{"exit_code":-99999999999}`:                            "not known: result.json says exit code -99999999999, which is not believed",
		`{"exit_code":null,"status":"failed"}`:                  `not known: result.json says "failed" and no exit code`,
		`{"status":"failed","message":"worker ended"}`:          "not known: worker ended",
		`{"exit_code":0,"status":"timeout"}`:                    "not known: result.json says exit code 0, which is not believed",
		`{}`:                                                    "not known: result.json does not say how the process ended",
		``:                                                      "not known: result.json cannot be read: it is empty",
		`[1]`:                                                   "not known: result.json cannot be read: it is JSON, but no object",
		`{"exit_code":1} {`:                                     "not known: result.json cannot be read: something follows its JSON, from byte 17 on",
		`{"error":"Execution failed dur`:                        "not known: result.json cannot be read: it is no JSON: unexpected EOF",
		strings.Repeat(`{"result":`, 20_000) + "1" + strings.Repeat("}", 20_000): "not known: result.json cannot be read: it is no JSON: invalid character '{' exceeded max depth",
	} {
		f := open(t, folder(t, map[string]string{"stdout.log": "x", "result.json": result}))
		if got := f.Ending(); got != want {
			t.Errorf("%.60s: %s\nwant %s", result, got, want)
		}
		if r := row(t, f); value(r.StdoutBytes) != uint64(1) || r.EndedAt == nil {
			t.Errorf("%.60s: the row has %v bytes and ended at %v", result, value(r.StdoutBytes), value(r.EndedAt))
		}
	}
}

func TestTerminationsAndWhatIsNotUnderstood(t *testing.T) {
	t.Parallel()
	f := open(t, folder(t, map[string]string{"stderr.log": "x", "result.json": `{"timed_out":true,"started_at":1709287200,"ended_at":1709287260500,"host":"h9","worker":"w3","pid":12,"cmd":"job.sh","args":["a","b"],"labels":{"team":"x"},"extra":{"a":1},"cwd":"/srv","at":"noon"}`}))
	r := row(t, f)
	if r.Status != "timeout" || value(r.Host) != "h9" || value(r.Runner) != "w3" || value(r.PID) != int64(12) || value(r.DurationMS) != int64(60_500) || r.Labels["team"] != "x" || strings.Join(r.Command, " ") != "job.sh a b" {
		t.Errorf("%s on %v by %v, pid %v, %v ms, labels %v, command %q", r.Status, value(r.Host), value(r.Runner), value(r.PID), value(r.DurationMS), r.Labels, r.Command)
	}
	if fields, fault := f.NotUnderstood(); strings.Join(fields, " ") != "at extra" || fault != "" {
		t.Errorf("not understood: %q %q", fields, fault)
	}
}

func TestWhatTheResultSaysIsMissing(t *testing.T) {
	t.Parallel()
	r := row(t, open(t, folder(t, map[string]string{"stdout.log": "12345", "stderr.log": "ok", "result.json": `{"exit_code":0,"stdout_bytes":9,"stderr_sha256":"` + strings.Repeat("ab", 32) + `"}`})))
	if value(r.Complete) != false || len(r.Missing) != 1 || r.Missing[0].Start != 5 || r.Missing[0].End != 9 || value(r.StderrDigestMatch) != false {
		t.Errorf("complete %v, missing %v, digest of stderr matches %v", value(r.Complete), r.Missing, value(r.StderrDigestMatch))
	}
}

func TestAnIDIsOfTheFolderAndItsContent(t *testing.T) {
	t.Parallel()
	files := map[string]string{"stdout.log": "same\n", "result.json": `{"exit_code":0,"started_at":"2024-03-01T10:00:00Z"}`}
	a, b := folder(t, files), folder(t, files)
	first := open(t, a).Execution
	if made, err := events.ParseExecutionID(first); err != nil || !made.Equal(time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("%s: made %v: %v", first, made, err)
	}
	if again := open(t, a).Execution; again != first {
		t.Errorf("%s, then %s", first, again)
	}
	if other := open(t, b).Execution; other == first {
		t.Error("two runs with the same output are one execution")
	}
	if err := os.WriteFile(filepath.Join(a, "stderr.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if other := open(t, a).Execution; other == first {
		t.Error("an empty stderr.log is the same as none")
	}
}

func TestAFileThatIsStillWritten(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"stdout.log": strings.Repeat("x", 5<<20), "result.json": `{"exit_code":0}`})
	f := open(t, dir)
	l := log{before: func(batch int) error {
		if batch > 1 {
			return nil
		}
		out, err := os.OpenFile(filepath.Join(dir, "stdout.log"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = out.WriteString("more")
		return errors.Join(err, out.Close())
	}}
	if err := f.Publish(t.Context(), "facts", &l, importer.Meta{}, nil); !errors.Is(err, importer.ErrChanged) {
		t.Fatalf("%v", err)
	}
	if r := execution.Fold(f.Execution, l.facts); r.Sealed || r.Status != "succeeded" || value(r.StdoutBytes).(uint64) < 5<<20 {
		t.Errorf("%s, sealed %v, %v bytes", r.Status, r.Sealed, value(r.StdoutBytes))
	}
}

func TestWhatIsNoFolder(t *testing.T) {
	t.Parallel()
	pipe := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(pipe, "stdout.log"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(link, "stdout.log")); err != nil {
		t.Fatal(err)
	}
	inner := t.TempDir()
	if err := os.Mkdir(filepath.Join(inner, "stderr.log"), 0o700); err != nil {
		t.Fatal(err)
	}
	for want, dir := range map[string]string{
		"no such file":              filepath.Join(pipe, "nowhere"),
		"is no folder":              filepath.Join(folder(t, map[string]string{"a": "x"}), "a"),
		"holds neither":             t.TempDir(),
		"is no regular file":        pipe,
		"link to nowhere":           link,
		"stderr.log is no regular":  inner,
		"a result may have 1048576": folder(t, map[string]string{"result.json": strings.Repeat(" ", 1<<20+1)}),
	} {
		if _, err := importer.Open(t.Context(), dir, importer.DefaultNames, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, name := range []string{"", "../stdout.log", "/etc/passwd", "stderr.log"} {
		names := importer.DefaultNames
		names.Stdout = name
		if _, err := importer.Open(t.Context(), t.TempDir(), names, nil); err == nil {
			t.Errorf("a file named %q", name)
		}
	}
}

// Whatever is in a result, all its facts can be published, and they fold to an end.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		`{"exit_code":1,"error":"x","labels":{"a":"b"}}`, `{"started_at":1e300,"pid":-1,"stdout_bytes":18446744073709551615}`,
		`{"signal":"SIGRTMIN","argv":["a","\ud800"]}`, `{"stdout_bytes":1e9,"stderr_sha256":"00"}`, `{"command":["\u0000"],"timed_out":true}`, `{"result":{"result":{}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{"stdout.log": []byte("x"), "result.json": text} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		in, err := importer.Open(t.Context(), dir, importer.DefaultNames, nil)
		if err != nil {
			if len(text) <= importer.MaxResultBytes {
				t.Fatal(err)
			}
			return
		}
		if r := row(t, in); r.EndedAt == nil || value(r.StdoutBytes).(uint64) < 1 {
			t.Errorf("ended at %v with %v bytes", r.EndedAt, value(r.StdoutBytes))
		}
	})
}
