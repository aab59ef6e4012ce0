package files_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/artifact/s3test"
	"verbatim.dev/services/recorder/files"
)

// ledger keeps what it was told, or fails.
type ledger struct {
	fails bool
	days  []string
}

func (l *ledger) ArtifactsRemoved(_ context.Context, day time.Time) error {
	if l.fails {
		return errors.New("the database is away")
	}
	l.days = append(l.days, day.Format(time.DateOnly))
	return nil
}

func put(t *testing.T, s *artifact.Store, keys ...string) {
	t.Helper()
	for _, key := range keys {
		w, err := s.Create(t.Context(), key, 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func keysOf(t *testing.T, s *artifact.Store) (keys []string) {
	t.Helper()
	err := s.List(t.Context(), "", func(o artifact.Object) error { keys = append(keys, o.Key); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func want(t *testing.T, s *artifact.Store, keys ...string) {
	t.Helper()
	got := keysOf(t, s)
	slices.Sort(got)
	slices.Sort(keys)
	if !slices.Equal(got, keys) {
		t.Errorf("there is\n%q, want\n%q", got, keys)
	}
}

// retention of 30 days, looked at on the first moment of 2026-05-01.
func checkRetention(t *testing.T, s, neighbour *artifact.Store, outage func(during func())) {
	t.Helper()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	folder := func(day time.Time) string {
		f, err := artifact.ExecutionFolder(events.FirstExecutionID(day))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	over, kept := folder(now.AddDate(0, 0, -31)), folder(now.AddDate(0, 0, -30)) // 03-31 and 04-01.
	long := folder(now.AddDate(-1, 0, 0))
	foreign := []string{
		"report.txt", "2026-03-31/report.txt", "2026-03-31/" + long[len("2025-05-01/"):] + "1/stdout.log", over + "stdout.log", over + "0/stdout.log", over + "01/stdout.log",
		"backup/" + over + "1/stdout.log", "2026-3-31/x/1/stdout.log",
	}
	goes := []string{over + "1/stdout.log", over + "1/stderr.log.zst", over + "2/stdout.log.parts/00000000000000000007", long + "1/stdout.log"}
	put(t, s, slices.Concat(foreign, goes, []string{kept + "1/stdout.log"})...)
	put(t, neighbour, over+"1/stdout.log")
	l := &ledger{fails: true}
	r, err := files.NewRetention(s, l, 30, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	// Nothing goes that is not noted before.
	if n, err := r.Once(t.Context(), now); err == nil || n != 0 {
		t.Errorf("%d removed, %v", n, err)
	}
	want(t, s, slices.Concat(foreign, goes, []string{kept + "1/stdout.log"})...)
	l.fails = false
	if outage != nil {
		outage(func() {
			if n, err := r.Once(t.Context(), now); err == nil || n != 0 {
				t.Errorf("%d removed while the server was away: %v", n, err)
			}
		})
	}
	// Another one was killed in the middle.
	if err := s.Delete(t.Context(), goes[:2]...); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Once(t.Context(), now); err != nil || n != 2 {
		t.Errorf("%d removed: %v", n, err)
	}
	want(t, s, append(foreign, kept+"1/stdout.log")...)
	want(t, neighbour, over+"1/stdout.log")
	// What is made later of such a day goes too.
	put(t, s, goes[0])
	if n, err := r.Once(t.Context(), now); err != nil || n != 1 {
		t.Errorf("%d removed of what was made later: %v", n, err)
	}
	want(t, s, append(foreign, kept+"1/stdout.log")...)
	noted := map[string]bool{}
	for _, d := range l.days {
		noted[d] = true
	}
	if !maps.Equal(noted, map[string]bool{"2025-05-01": true, "2026-03-31": true}) {
		t.Errorf("noted are %v", l.days)
	}
}

func TestRetentionOfFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	checkRetention(t, open(t, "file://"+dir+"/mine"), open(t, "file://"+dir+"/other"), nil)
}

func TestRetentionOfS3(t *testing.T) {
	server := s3test.New(t)
	server.Start()
	at := server.URL(s3test.Bucket)
	checkRetention(t, open(t, at+"&prefix=mine/"), open(t, at+"&prefix=mine-too/"), func(during func()) {
		server.Kill()
		during()
		server.Start()
	})
}
