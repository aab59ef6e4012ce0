package events

import (
	"errors"
	"fmt"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// MaxRetries and MaxBackoff bound a retry policy.
const (
	MaxRetries = 100
	MaxBackoff = 24 * time.Hour
)

// CheckRetry reports everything that is wrong with a retry policy, joined; nil for none.
func CheckRetry(p *executionv1.RetryPolicy) error {
	if p == nil {
		return nil
	}
	var errs []error
	if p.GetRetries() < 1 || p.GetRetries() > MaxRetries {
		errs = append(errs, fmt.Errorf("retries is %d, it is from 1 to %d", p.GetRetries(), MaxRetries))
	}
	if len(p.GetRetryOn()) == 0 {
		errs = append(errs, errors.New("it does not say after which ends to try again"))
	}
	for _, on := range p.GetRetryOn() {
		if _, known := executionv1.RetryOn_name[int32(on)]; !known || on == executionv1.RetryOn_RETRY_ON_UNSPECIFIED {
			errs = append(errs, fmt.Errorf("end %d is not known here", on))
		}
	}
	if b := p.GetBackoff(); b != nil && (b.CheckValid() != nil || b.AsDuration() <= 0 || b.AsDuration() > MaxBackoff) {
		errs = append(errs, fmt.Errorf("backoff is %s, it is above 0 and at most %s", b.AsDuration(), MaxBackoff))
	}
	if b := p.GetMaxBackoff(); b != nil && (b.CheckValid() != nil || b.AsDuration() <= 0 || b.AsDuration() > MaxBackoff) {
		errs = append(errs, fmt.Errorf("longest backoff is %s, it is above 0 and at most %s", b.AsDuration(), MaxBackoff))
	}
	return errors.Join(errs...)
}
