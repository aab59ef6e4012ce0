// Package retry waits for what is away. A store or a broker that does not answer is no reason to drop or
// to dead-letter anything: the work stands still until it answers or until the context ends.
package retry

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Until tries until it succeeds, the context ends, or the error is backoff.Permanent. Between tries it waits
// 0.5 s at first and 10 s at most. It logs the first failure and then one in ten, so that an hour without
// a database is not an hour of log.
func Until(ctx context.Context, logger *slog.Logger, what string, try func() error) error {
	failures := 0
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = 10 * time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, try() },
		backoff.WithBackOff(waits),
		backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, wait time.Duration) {
			if failures%10 == 0 {
				logger.WarnContext(ctx, "trying again", "what", what, "failures", failures+1, "wait", wait.Round(time.Millisecond), "error", err)
			}
			failures++
		}))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if failures > 0 {
		logger.InfoContext(ctx, "works again", "what", what, "failures", failures)
	}
	return nil
}
