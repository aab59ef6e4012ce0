package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"verbatim.dev/services/e2e/rig"
)

// patience bounds every wait for something that must happen. An execution that begins while everything is being
// killed waits for its turn, so it is generous.
const patience = 3 * time.Minute

func (p plan) rig() rig.Rig { return rig.Rig{Dir: p.dir, Program: p.verbatim} }

// up starts "verbatim up" and waits until it is ready; server is its URL.
func (p plan) up(ctx context.Context, args ...string) (s *rig.Process, server string, err error) {
	data := filepath.Join(p.dir, "data")
	_ = os.Remove(filepath.Join(data, "endpoints.json")) // Of one that was killed.
	flags := []string{"up", "--data", data, "--http", "127.0.0.1:0", "--kafka", "127.0.0.1:0", "--clickhouse", "127.0.0.1:0", "--grace", "2s"}
	s, err = p.rig().Launch("up", append(flags, args...)...)
	if err != nil {
		return nil, "", err
	}
	err = poll(ctx, func() error {
		if !s.Running() {
			return errFinal{fmt.Errorf("up ended: %w", s.Err())}
		}
		text, err := os.ReadFile(filepath.Join(data, "endpoints.json"))
		if err != nil {
			return err
		}
		var at struct{ HTTP string }
		if err := json.Unmarshal(text, &at); err != nil {
			return err
		}
		answer, err := http.Get("http://" + at.HTTP + "/readyz") //nolint:noctx // The poll is bounded.
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("up is not ready: %s", answer.Status)
		}
		server = "http://" + at.HTTP
		return nil
	})
	if err != nil {
		s.Kill()
		return nil, "", err
	}
	return s, server, nil
}

// errFinal ends a poll at once.
type errFinal struct{ error }

// poll tries until it works or patience ends.
func poll(ctx context.Context, try func() error) error {
	return pollEvery(ctx, 50*time.Millisecond, try)
}

func pollEvery(ctx context.Context, every time.Duration, try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || errors.As(err, &errFinal{}) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
