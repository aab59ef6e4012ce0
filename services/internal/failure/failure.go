// Package failure tells the two kinds of failed messages apart, because they need opposite care.
//
// A permanent failure lies in the message: it is malformed, or it asks for what can never be. It fails in
// the same way every time, so it is dead-lettered. Every other failure is transient: something that the work
// needs is away. Trying again is right and dead-lettering would be loss.
//
// An error is transient unless it says otherwise.
package failure

import (
	"errors"

	"verbatim.dev/events/kafka"
)

// Permanent marks an error as one that trying again cannot cure. It reads and unwraps like err itself.
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err: err}
}

// Publishing marks the error of a publisher as permanent when a message is too large, which it is in every try. Everything else that keeps a
// message from the broker passes. Publishing(nil) is nil.
func Publishing(err error) error {
	if errors.Is(err, kafka.ErrTooLarge) {
		return Permanent(err)
	}
	return err
}

// IsPermanent reports whether err, or an error that it wraps, was marked with Permanent.
func IsPermanent(err error) bool {
	var p *permanent
	return errors.As(err, &p)
}

type permanent struct{ err error }

func (p *permanent) Error() string { return p.err.Error() }
func (p *permanent) Unwrap() error { return p.err }
