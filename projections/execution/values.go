package execution

import (
	"maps"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func ptr[T any](v T) *T { return &v }

// or is a unless it is not known.
func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// text is s, nil when it is empty: in a payload an empty text is one that was not given.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// when is t, nil when it is zero.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// timeOf is a payload's time, or the given one when the payload has none that a row can hold.
func timeOf(ts *timestamppb.Timestamp, otherwise time.Time) time.Time {
	if ts != nil && ts.IsValid() {
		if t := usable(ts.AsTime()); !t.IsZero() {
			return t
		}
	}
	return otherwise
}

// milliseconds of a duration, nil when it is absent. AsDuration saturates.
func milliseconds(d *durationpb.Duration) *int64 {
	if d == nil {
		return nil
	}
	return ptr(d.AsDuration().Milliseconds())
}

func copyLabels(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

// signalName is the name without SIG, the number when there is no name.
func signalName(s *executionv1.Signal) string {
	name := strings.TrimPrefix(strings.ToUpper(s.GetName()), "SIG")
	if name == "" {
		return strconv.Itoa(int(s.GetNumber()))
	}
	return clip(name)
}
