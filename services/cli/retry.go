package cli

import (
	"errors"
	"fmt"

	"verbatim.dev/events"
	"verbatim.dev/services/gateway/api"
)

// retry makes the request's retry policy; nil when none was asked for.
func (c *runCommand) retry() (*api.Retry, error) {
	if c.Retries == 0 {
		if len(c.RetryOn) > 0 || c.RetryBackoff != nil || c.RetryMaxBackoff != nil {
			return nil, errors.New("--retry-on and the backoffs need --retries N")
		}
		return nil, nil
	}
	if c.Retries < 0 || c.Retries > events.MaxRetries {
		return nil, fmt.Errorf("--retries is %d, it is from 0 to %d", c.Retries, events.MaxRetries)
	}
	r := &api.Retry{Retries: c.Retries, On: c.RetryOn}
	if len(r.On) == 0 {
		r.On = []string{"failed", "timeout"}
	}
	for _, on := range r.On {
		switch on {
		case "lost", "failed", "timeout":
		default:
			return nil, fmt.Errorf("--retry-on %q is none of lost, failed, timeout", on)
		}
	}
	if d := c.RetryBackoff; d != nil {
		if *d <= 0 || *d > events.MaxBackoff {
			return nil, fmt.Errorf("--retry-backoff is %s, it is above 0 and at most %s", *d, events.MaxBackoff)
		}
		r.Backoff = d.String()
	}
	if d := c.RetryMaxBackoff; d != nil {
		if *d <= 0 || *d > events.MaxBackoff {
			return nil, fmt.Errorf("--retry-max-backoff is %s, it is above 0 and at most %s", *d, events.MaxBackoff)
		}
		r.MaxBackoff = d.String()
	}
	return r, nil
}
