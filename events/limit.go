package events

import (
	"fmt"
	"math"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// How much of a stream is published when a request does not say, in bytes (docs/operations.md), and the most of its end that can be
// asked for: what readers keep until the seal says where it belongs.
const (
	DefaultHeadBytes = 2 << 20
	DefaultTailBytes = 8 << 20
	MaxTailBytes     = 8 << 20
)

// LimitOutput returns the limit that publishes so many bytes of each stream: a fifth from its beginning and the rest from its
// end, or more from the beginning when that would be more of the end than MaxTailBytes.
func LimitOutput(bytes uint64) *executionv1.OutputLimit {
	tail := min(bytes-bytes/5, MaxTailBytes)
	return &executionv1.OutputLimit{HeadBytes: bytes - tail, TailBytes: tail}
}

// HeadAndTail returns how many bytes of a stream's beginning and end are published; the head is math.MaxUint64 when there is no
// limit. No limit given means the default.
func HeadAndTail(l *executionv1.OutputLimit) (head, tail uint64) {
	switch {
	case l == nil:
		return DefaultHeadBytes, DefaultTailBytes
	case l.GetNone():
		return math.MaxUint64, 0
	}
	return l.GetHeadBytes(), l.GetTailBytes()
}

// ValidateOutputLimit says what is wrong with a limit.
func ValidateOutputLimit(l *executionv1.OutputLimit) error {
	if !l.GetNone() && l.GetTailBytes() > MaxTailBytes {
		return fmt.Errorf("the output limit's tail is %d bytes, the most is %d", l.GetTailBytes(), MaxTailBytes)
	}
	return nil
}
