package retry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"verbatim.dev/services/internal/retry"
)

func TestUntilItWorks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tries := 0
		err := retry.Until(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "store rows", func() error {
			if tries++; tries < 400 {
				return errors.New("connection refused")
			}
			return nil
		})
		if err != nil || tries != 400 {
			t.Errorf("%d tries, %v", tries, err)
		}
		if lines := strings.Count(log.String(), "\n"); lines > 45 {
			t.Errorf("%d log lines for 400 tries", lines)
		}
	})
}

func TestUntilTheContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := retry.Until(ctx, slog.New(slog.DiscardHandler), "store rows", func() error { return errors.New("connection refused") })
		if err == nil || !strings.Contains(err.Error(), "store rows") {
			t.Errorf("got %v", err)
		}
	})
}
