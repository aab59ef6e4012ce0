package events

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// The CloudEvent types.
const (
	TypeExecutionRequested = "dev.verbatim.execution.ExecutionRequested.v1"
	TypeCancelRequested    = "dev.verbatim.execution.CancelRequested.v1"
	TypeCordonRequested    = "dev.verbatim.execution.CordonRequested.v1"
	TypePrepared           = "dev.verbatim.execution.Prepared.v1"
	TypePreparationFailed  = "dev.verbatim.execution.PreparationFailed.v1"
	TypeProcessStarted     = "dev.verbatim.execution.ProcessStarted.v1"
	TypeStartFailed        = "dev.verbatim.execution.StartFailed.v1"
	TypeOutputChunk        = "dev.verbatim.execution.OutputChunk.v1"
	TypeStdinWriteFailed   = "dev.verbatim.execution.StdinWriteFailed.v1"
	TypeOutputReadFailed   = "dev.verbatim.execution.OutputReadFailed.v1"
	TypeTerminationStarted = "dev.verbatim.execution.TerminationStarted.v1"
	TypeProcessExited      = "dev.verbatim.execution.ProcessExited.v1"
	TypeWaitFailed         = "dev.verbatim.execution.WaitFailed.v1"
	TypeOutputSealed       = "dev.verbatim.execution.OutputSealed.v1"
	TypeOutputRecorded     = "dev.verbatim.execution.OutputRecorded.v1"
	TypeRunnerLost         = "dev.verbatim.execution.RunnerLost.v1"
	TypeRunnerReturned     = "dev.verbatim.execution.RunnerReturned.v1"
	TypeRetryScheduled     = "dev.verbatim.execution.RetryScheduled.v1"
	TypeRetryRequested     = "dev.verbatim.execution.RetryRequested.v1"
	TypeResultImported     = "dev.verbatim.execution.ResultImported.v1"
	TypeExecutionDeleted   = "dev.verbatim.execution.ExecutionDeleted.v1"
	TypeStdinPart          = "dev.verbatim.execution.StdinPart.v1"
	TypeRunnerHeartbeat    = "dev.verbatim.execution.RunnerHeartbeat.v1"
)

// registry is the one list of known payloads.
var registry = []proto.Message{
	(*executionv1.ExecutionRequested)(nil), (*executionv1.CancelRequested)(nil), (*executionv1.CordonRequested)(nil),
	(*executionv1.Prepared)(nil), (*executionv1.PreparationFailed)(nil),
	(*executionv1.ProcessStarted)(nil), (*executionv1.StartFailed)(nil),
	(*executionv1.OutputChunk)(nil), (*executionv1.StdinWriteFailed)(nil), (*executionv1.OutputReadFailed)(nil),
	(*executionv1.TerminationStarted)(nil), (*executionv1.ProcessExited)(nil), (*executionv1.WaitFailed)(nil),
	(*executionv1.OutputSealed)(nil), (*executionv1.OutputRecorded)(nil),
	(*executionv1.RunnerLost)(nil), (*executionv1.RunnerReturned)(nil),
	(*executionv1.RetryScheduled)(nil), (*executionv1.RetryRequested)(nil),
	(*executionv1.ResultImported)(nil), (*executionv1.ExecutionDeleted)(nil), (*executionv1.StdinPart)(nil), (*executionv1.RunnerHeartbeat)(nil),
}

var byType = func() map[string]protoreflect.MessageType {
	m := make(map[string]protoreflect.MessageType, len(registry))
	for _, p := range registry {
		m[typeName(p)] = p.ProtoReflect().Type()
	}
	return m
}()

func typeName(p proto.Message) string {
	return "dev.verbatim.execution." + string(p.ProtoReflect().Descriptor().Name()) + ".v1"
}

// TypeOf returns the CloudEvent type of a payload.
func TypeOf(data proto.Message) (string, error) {
	if data == nil {
		return "", fmt.Errorf("payload is nil")
	}
	name := typeName(data)
	if _, ok := byType[name]; !ok {
		return "", fmt.Errorf("%s is no payload of an event", data.ProtoReflect().Descriptor().FullName())
	}
	return name, nil
}

// NewPayload returns an empty payload for a type; false when the type is not known here.
func NewPayload(typ string) (proto.Message, bool) {
	m, ok := byType[typ]
	if !ok {
		return nil, false
	}
	return m.New().Interface(), true
}

// AboutRunner reports whether the subject of a type is a runner's id and not an execution's.
func AboutRunner(typ string) bool { return typ == TypeRunnerHeartbeat || typ == TypeCordonRequested }

// Types lists the known types in the order of an execution's life.
func Types() []string {
	names := make([]string, len(registry))
	for i, p := range registry {
		names[i] = typeName(p)
	}
	return names
}

// StreamName is "stdout", "stderr", or "" for a stream that is not known here.
func StreamName(s executionv1.Stream) string {
	switch s {
	case executionv1.Stream_STREAM_STDOUT:
		return "stdout"
	case executionv1.Stream_STREAM_STDERR:
		return "stderr"
	default:
		return ""
	}
}

// validatePayload checks what a fold must be able to rely on.
func validatePayload(e Event) error {
	if e.Data == nil {
		return nil
	}
	switch d := e.Data.(type) {
	case *executionv1.OutputChunk:
		switch end := d.GetOffset() + uint64(len(d.GetData())); {
		case len(d.GetData()) == 0:
			return fmt.Errorf("OutputChunk.data is empty")
		case len(d.GetData()) > MaxChunkBytes:
			return fmt.Errorf("OutputChunk.data has %d bytes, the limit is %d", len(d.GetData()), MaxChunkBytes)
		case end < d.GetOffset():
			return fmt.Errorf("OutputChunk.offset %d plus its length passes 2^64", d.GetOffset())
		}
	case *executionv1.StdinPart:
		switch end := d.GetOffset() + uint64(len(d.GetData())); {
		case len(d.GetData()) == 0 || len(d.GetData()) > MaxChunkBytes:
			return fmt.Errorf("StdinPart.data has %d bytes, 1 to %d are allowed", len(d.GetData()), MaxChunkBytes)
		case end < d.GetOffset() || end > MaxStdinBytes:
			return fmt.Errorf("StdinPart.offset %d is past the %d bytes that a standard input may have", d.GetOffset(), MaxStdinBytes)
		}
	case *executionv1.OutputSealed:
		for _, s := range d.GetStreams() {
			if err := validateSeal(s); err != nil {
				return fmt.Errorf("OutputSealed: stream %s: %w", s.GetStream(), err)
			}
		}
	}
	switch {
	case e.Type == TypeExecutionRequested || e.Type == TypeCancelRequested || e.Type == TypeStdinPart || e.Type == TypeExecutionDeleted:
		if e.Attempt != 0 {
			return fmt.Errorf("%s has attempt %d, it belongs to no attempt: 0", e.Type, e.Attempt)
		}
	case !AboutRunner(e.Type) && e.Attempt == 0:
		return fmt.Errorf("%s has no attempt, attempts count from 1", e.Type)
	}
	return nil
}

func validateSeal(s *executionv1.StreamSeal) error {
	for _, digest := range [][]byte{s.GetSha256(), s.GetPublishedSha256()} {
		if n := len(digest); n != 0 && n != 32 {
			return fmt.Errorf("digest has %d bytes, SHA-256 has 32", n)
		}
	}
	absent := uint64(0)
	for name, ranges := range map[string][]*executionv1.ByteRange{"elided": s.GetElided(), "lost": s.GetLost()} {
		last := uint64(0)
		for _, r := range ranges {
			if r.GetStart() < last || r.GetEnd() <= r.GetStart() || r.GetEnd() > s.GetCapturedBytes() {
				return fmt.Errorf("%s range [%d, %d) is empty, out of order or past the %d captured bytes", name, r.GetStart(), r.GetEnd(), s.GetCapturedBytes())
			}
			last = r.GetEnd()
			absent += r.GetEnd() - r.GetStart()
		}
	}
	if s.GetPublishedBytes() > s.GetCapturedBytes() || absent != s.GetCapturedBytes()-s.GetPublishedBytes() {
		return fmt.Errorf("%d published and %d elided or lost bytes do not add up to the %d captured", s.GetPublishedBytes(), absent, s.GetCapturedBytes())
	}
	return nil
}

// HappenedAt is the event's time, or the given one when the producer did not say.
func (e Event) HappenedAt(otherwise time.Time) time.Time {
	if e.Time.IsZero() {
		return otherwise
	}
	return e.Time
}
