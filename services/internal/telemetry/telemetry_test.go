package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"verbatim.dev/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestALoggerHasNoColoursWhereThereIsNoTerminal(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"auto", "text", "json"} {
		var w bytes.Buffer
		l, err := telemetry.NewLogger(telemetry.LogConfig{Level: "info", Format: format}, &w)
		if err != nil {
			t.Fatal(err)
		}
		l.InfoContext(t.Context(), "hello", "a", 1)
		l.DebugContext(t.Context(), "hidden")
		if got := w.String(); strings.Contains(got, "\033") || !strings.Contains(got, "hello") || strings.Contains(got, "hidden") {
			t.Errorf("%s: %q", format, got)
		}
	}
	for _, c := range []telemetry.LogConfig{{Level: "loud", Format: "text"}, {Level: "info", Format: "xml"}} {
		if _, err := telemetry.NewLogger(c, io.Discard); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var checks telemetry.Checks
	checks.Add("good", func(context.Context) error { return nil })
	s := telemetry.NewServer("127.0.0.1:0", &checks, telemetry.NewRegistry())
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	if code, body := get("/readyz"); code != http.StatusOK || !strings.Contains(body, `"good":"ready"`) {
		t.Errorf("%d %s", code, body)
	}
	checks.Add("bad", func(context.Context) error { return errors.New("database is away") })
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "database is away") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get("/livez"); code != http.StatusOK {
		t.Errorf("alive and not ready answers %d", code)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "go_goroutines") {
		t.Errorf("%d %s", code, body)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	for _, addr := range []string{"0.0.0.0:0", "banana", ":0"} {
		if err := telemetry.NewServer(addr, &checks, telemetry.NewRegistry()).Start(t.Context()); err == nil {
			t.Errorf("listens on %s", addr)
		}
	}
}
