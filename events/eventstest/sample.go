// Package eventstest helps tests that speak events: one sample of every event, and a runner's whole
// story of an execution.
package eventstest

import (
	"crypto/sha256"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// ExecutionID is the execution of every sample.
const ExecutionID = "019366e0-7c00-7000-8000-0000000000ab"

// Time is when the samples happened.
var Time = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

// Binary is output that is no text: NUL, invalid UTF-8, a cut character.
var Binary = []byte("a\x00b\xff\xfe\xc3")

// Undeleted are the samples without the one after which everything else is forgotten.
func Undeleted() []events.Event {
	return slices.DeleteFunc(Samples(), func(e events.Event) bool { return e.Type == events.TypeExecutionDeleted })
}

// Samples returns one event of every type with every field filled in.
func Samples() []events.Event {
	gateway := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}
	preparer := events.Producer{Name: "preparer", Source: "/verbatim/preparer"}
	runner := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}
	recorder := events.Producer{Name: "recorder", Source: "/verbatim/recorder"}
	digest := sha256.Sum256(Binary)
	watchdog := events.Producer{Name: "watchdog", Source: "/verbatim/watchdog"}
	at := timestamppb.New(Time)
	kill := &executionv1.Signal{Number: 9, Name: "KILL"}

	return []events.Event{
		must(gateway, 0, 1, &executionv1.ExecutionRequested{
			What:    &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"sh", "-c", "exit 3"}, Environment: map[string]string{"A": "1"}, Directory: "/tmp"}},
			Timeout: durationpb.New(time.Minute), Grace: durationpb.New(time.Second), Stdin: Binary,
			Labels: map[string]string{"team": "x"}, RequestedBy: "somebody", Limits: limits(),
			OutputLimit: &executionv1.OutputLimit{HeadBytes: 2, TailBytes: 4},
		}),
		must(gateway, 0, 2, &executionv1.CancelRequested{RequestedBy: "somebody", Reason: "not needed any more"}),
		must(preparer, 1, 1, &executionv1.Prepared{
			Argv: []string{"sh", "-c", "exit 3"}, Environment: map[string]string{"A": "1"}, Directory: "/tmp", Stdin: Binary,
			Timeout: durationpb.New(time.Minute), Grace: durationpb.New(time.Second), Action: "deploy",
			Labels: map[string]string{"team": "x"}, RequestedAt: at, RequestedBy: "somebody", Limits: limits(),
			OutputLimit: &executionv1.OutputLimit{None: true},
		}),
		must(preparer, 1, 2, &executionv1.PreparationFailed{Reason: executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_UNKNOWN_ACTION, Message: `action "deploy" is not known`}),
		must(runner, 1, 1, &executionv1.ProcessStarted{Pid: 4711, ProcessStartedAt: at, Host: "h1", Runner: "r1"}),
		must(runner, 1, 2, &executionv1.StartFailed{Reason: executionv1.StartFailureReason_START_FAILURE_REASON_COMMAND_NOT_FOUND, Message: `command "x" not found`, Errno: 2, Host: "h1", Runner: "r1"}),
		must(runner, 1, 3, &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDERR, Offset: 1 << 40, CapturedAt: at, Data: Binary}),
		must(runner, 1, 4, &executionv1.StdinWriteFailed{AcceptedBytes: 4096, OfferedBytes: 8192, Cause: "broken pipe"}),
		must(runner, 1, 5, &executionv1.OutputReadFailed{Stream: executionv1.Stream_STREAM_STDOUT, Offset: 12, Cause: "input/output error"}),
		must(runner, 1, 6, &executionv1.TerminationStarted{
			Cause: executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT, RequestedBy: "somebody", Message: "ran 60s",
			Signals: []*executionv1.SentSignal{{Signal: &executionv1.Signal{Number: 15, Name: "TERM"}, SentAt: at}},
		}),
		must(runner, 1, 7, &executionv1.ProcessExited{
			Status: &executionv1.ProcessExited_Signal{Signal: kill}, CoreDumped: true, EndedAt: at,
			Usage: &executionv1.ResourceUsage{
				UserTime: durationpb.New(time.Second), SystemTime: durationpb.New(time.Millisecond), MaxResidentBytes: 1 << 20,
				MinorPageFaults: 1, MajorPageFaults: 2, BlocksRead: 3, BlocksWritten: 4, VoluntarySwitches: 5, InvoluntarySwitches: 6,
			},
			OutOfMemory: &executionv1.OutOfMemory{Kills: 1, Evidence: "memory.events"},
		}),
		must(runner, 1, 8, &executionv1.WaitFailed{Cause: "no child processes", Errno: 10, FailedAt: at}),
		must(runner, 1, 9, &executionv1.OutputSealed{Streams: []*executionv1.StreamSeal{
			{
				Stream: executionv1.Stream_STREAM_STDOUT, CapturedBytes: 20, PublishedBytes: 6,
				Elided: []*executionv1.ByteRange{{Start: 2, End: 12}}, Lost: []*executionv1.ByteRange{{Start: 12, End: 16}},
				Sha256: digest[:], PublishedSha256: digest[:], PipeStillHeld: true,
				MaskedRanges: 2, MaskedBytes: 5,
			},
			{Stream: executionv1.Stream_STREAM_STDERR},
		}}),
		must(recorder, 1, 1, &executionv1.OutputRecorded{Artifacts: []*executionv1.Artifact{{
			Stream: executionv1.Stream_STREAM_STDOUT, Uri: "file:///var/lib/verbatim/stdout.log", SizeBytes: 6, Sha256: digest[:],
		}}}),
		must(recorder, 1, 2, &executionv1.RunnerLost{Runner: "r1", SilentSince: at, LastSequence: 9}),
		must(watchdog, 1, 1, &executionv1.RunnerReturned{Runner: "r1", HeardAt: at}),
		must(watchdog, 1, 2, &executionv1.RetryScheduled{NextAttempt: 2, NotBefore: at, Because: executionv1.RetryOn_RETRY_ON_LOST}),
		must(watchdog, 2, 1, &executionv1.RetryRequested{Request: &executionv1.ExecutionRequested{
			What:  &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"sh", "-c", "exit 3"}}},
			Retry: &executionv1.RetryPolicy{Retries: 2, RetryOn: []executionv1.RetryOn{executionv1.RetryOn_RETRY_ON_LOST}, Backoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(time.Minute)},
		}, RequestedAt: at}),
		must(events.Producer{Name: "import", Source: "/verbatim/import"}, 1, 1, &executionv1.ResultImported{
			Folder: "/var/jobs/7", Host: "h1", ResultName: "result.json", Result: []byte(`{"error":"Execution failed`), ResultFault: "it is no JSON: unexpected EOF",
			Files: []*executionv1.ImportedFile{{Name: "stdout.log", SizeBytes: 6, ModifiedAt: at, Sha256: digest[:]}},
		}),
		must(events.Producer{Name: "delete", Source: "/verbatim/delete"}, 0, 1, &executionv1.ExecutionDeleted{RequestedBy: "somebody", Reason: "it named a customer"}),
		stdinPart(),
		heartbeat(at),
		cordon(),
	}
}

func stdinPart() events.Event {
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(ExecutionID, 0, 1, Time, &executionv1.StdinPart{Offset: 1 << 20, Data: Binary})
	if err != nil {
		panic(err)
	}
	return e
}

func limits() *executionv1.Limits {
	return &executionv1.Limits{
		OpenFiles: proto.Uint64(1024), UserProcesses: proto.Uint64(64), FileSizeBytes: proto.Uint64(1 << 30), CpuSeconds: proto.Uint64(60),
		AddressSpaceBytes: proto.Uint64(1 << 40), CoreBytes: proto.Uint64(0), Umask: proto.Uint32(0o027), User: "nobody", Group: "nogroup",
		AllowNewPrivileges: true, MemoryBytes: proto.Uint64(512 << 20), CpuMillis: proto.Uint64(500), Processes: proto.Uint64(32),
	}
}

func cordon() events.Event {
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event("r1", 0, 3, Time, &executionv1.CordonRequested{
		Cordoned: true, RequestedBy: "somebody", Reason: "a new kernel",
	})
	if err != nil {
		panic(err)
	}
	return e
}

func heartbeat(at *timestamppb.Timestamp) events.Event {
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}.Event("r1", 0, 1, Time, &executionv1.RunnerHeartbeat{
		Runner: "r1", Host: "h1", Slots: 8, Version: "1.0.0", StartedAt: at,
		Running: []*executionv1.RunningAttempt{{Execution: ExecutionID, Attempt: 1, LastSequence: 3}},
	})
	if err != nil {
		panic(err)
	}
	return e
}

// must panics, since only a wrong sample can fail; it runs in tests alone.
func must(p events.Producer, attempt uint32, sequence uint64, data proto.Message) events.Event {
	e, err := p.Event(ExecutionID, attempt, sequence, Time, data)
	if err != nil {
		panic(err)
	}
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	return e
}
