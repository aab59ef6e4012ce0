package gateway

import (
	"strings"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

// retry makes the event's retry policy; nil when none was asked for.
func (v *validation) retry(r *api.Retry) *executionv1.RetryPolicy {
	if r == nil {
		return nil
	}
	p := &executionv1.RetryPolicy{
		Retries: uint32(max(0, min(r.Retries, events.MaxRetries+1))),
		Backoff: v.duration("body.retry.backoff", r.Backoff, true), MaxBackoff: v.duration("body.retry.max_backoff", r.MaxBackoff, true),
	}
	for _, on := range r.On {
		value, known := executionv1.RetryOn_value["RETRY_ON_"+strings.ToUpper(on)]
		if !known || value == 0 {
			v.bad("body.retry.on", "holds none of lost, failed, timeout")
			return nil
		}
		p.RetryOn = append(p.RetryOn, executionv1.RetryOn(value))
	}
	if err := events.CheckRetry(p); err != nil {
		for line := range strings.Lines(err.Error()) {
			v.bad("body.retry", strings.TrimSpace(line))
		}
	}
	return p
}
