package clickhouse

import (
	"reflect"
	"slices"
	"time"

	"verbatim.dev/projections/execution"
)

// record is a row of the table executions. Its fields are the table's columns.
type record struct {
	CreatedDay           time.Time         `ch:"created_day"`
	ExecutionID          string            `ch:"execution_id"`
	Status               string            `ch:"status"`
	Succeeded            *bool             `ch:"succeeded"`
	ExitCode             *int32            `ch:"exit_code"`
	Signal               *string           `ch:"signal"`
	Error                *string           `ch:"error"`
	ErrorSource          *string           `ch:"error_source"`
	Stdout               *string           `ch:"stdout"`
	Stderr               *string           `ch:"stderr"`
	StdoutBytes          *uint64           `ch:"stdout_bytes"`
	StderrBytes          *uint64           `ch:"stderr_bytes"`
	StdoutTruncated      *bool             `ch:"stdout_truncated"`
	StdoutBytesTruncated *uint64           `ch:"stdout_bytes_truncated"`
	StderrTruncated      *bool             `ch:"stderr_truncated"`
	StderrBytesTruncated *uint64           `ch:"stderr_bytes_truncated"`
	StdoutLog            *string           `ch:"stdout_log"`
	StderrLog            *string           `ch:"stderr_log"`
	StdoutLogBytes       *uint64           `ch:"stdout_log_bytes"`
	StderrLogBytes       *uint64           `ch:"stderr_log_bytes"`
	StdoutLogSHA256      *string           `ch:"stdout_log_sha256"`
	StderrLogSHA256      *string           `ch:"stderr_log_sha256"`
	StdoutLogMatch       *bool             `ch:"stdout_log_match"`
	StderrLogMatch       *bool             `ch:"stderr_log_match"`
	Complete             *bool             `ch:"complete"`
	Missing              []byteRange       `ch:"missing"`
	RequestedAt          *time.Time        `ch:"requested_at"`
	StartedAt            *time.Time        `ch:"started_at"`
	EndedAt              *time.Time        `ch:"ended_at"`
	Attempt              *uint32           `ch:"attempt"`
	Runner               *string           `ch:"runner"`
	Labels               map[string]string `ch:"labels"`
	RetryAt              *time.Time        `ch:"retry_at"`
	Reason               *string           `ch:"reason"`
	Action               *string           `ch:"action"`
	Command              []string          `ch:"command"`
	Directory            *string           `ch:"directory"`
	RequestedBy          *string           `ch:"requested_by"`
	PreparedAt           *time.Time        `ch:"prepared_at"`
	DurationMS           *int64            `ch:"duration_ms"`
	Sealed               bool              `ch:"sealed"`
	Host                 *string           `ch:"host"`
	PID                  *int64            `ch:"pid"`
	CoreDumped           *bool             `ch:"core_dumped"`
	OutOfMemory          *bool             `ch:"out_of_memory"`
	UserMS               *int64            `ch:"user_ms"`
	SystemMS             *int64            `ch:"system_ms"`
	MaxResidentBytes     *uint64           `ch:"max_resident_bytes"`
	TimeoutMS            *int64            `ch:"timeout_ms"`
	StdinAcceptedBytes   *uint64           `ch:"stdin_accepted_bytes"`
	StdinOfferedBytes    *uint64           `ch:"stdin_offered_bytes"`
	Terminated           bool              `ch:"terminated"`
	TerminationCause     *string           `ch:"termination_cause"`
	TerminationBy        *string           `ch:"termination_requested_by"`
	TerminationMessage   *string           `ch:"termination_message"`
	TerminationStartedAt *time.Time        `ch:"termination_started_at"`
	TerminationSignals   []sentSignal      `ch:"termination_signals"`
	StdoutSHA256         *string           `ch:"stdout_sha256"`
	StderrSHA256         *string           `ch:"stderr_sha256"`
	StdoutDigestMatch    *bool             `ch:"stdout_digest_match"`
	StderrDigestMatch    *bool             `ch:"stderr_digest_match"`
	StdoutPipeStillHeld  *bool             `ch:"stdout_pipe_still_held"`
	StderrPipeStillHeld  *bool             `ch:"stderr_pipe_still_held"`
	Elided               []byteRange       `ch:"elided"`
	StdoutMaskedRanges   *uint64           `ch:"stdout_masked_ranges"`
	StderrMaskedRanges   *uint64           `ch:"stderr_masked_ranges"`
	OutputErrors         []string          `ch:"output_errors"`
	Attempts             uint64            `ch:"attempts"`
	Contradictions       []string          `ch:"contradictions"`
	Facts                map[string]uint64 `ch:"facts"`
	UnknownFacts         uint64            `ch:"unknown_facts"`
	Version              uint64            `ch:"version"`
	State                string            `ch:"state"`
}

type byteRange struct {
	Stream string `ch:"stream"`
	Start  uint64 `ch:"start"`
	End    uint64 `ch:"end"`
}

type sentSignal struct {
	Signal string     `ch:"signal"`
	SentAt *time.Time `ch:"sent_at"`
}

// recordColumns are all columns, rowColumns those a Row is made of, listColumns those without the previews.
var (
	recordColumns = columnsOf(reflect.TypeFor[record]())
	rowColumns    = without(recordColumns, "state", "created_day")
	listColumns   = without(rowColumns, "stdout", "stderr")
)

func columnsOf(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("ch")
	}
	return names
}

func without(names []string, left ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(left, n) })
}

func recordOf(s *execution.State) (*record, error) {
	r := s.Row()
	day, err := dayOf(r.ExecutionID)
	if err != nil {
		return nil, err
	}
	state, err := s.MarshalBeside(&r)
	if err != nil {
		return nil, err
	}
	c := &record{
		CreatedDay: day, ExecutionID: r.ExecutionID, Status: r.Status, Succeeded: r.Succeeded, ExitCode: r.ExitCode, Signal: r.Signal,
		Error: r.Error, ErrorSource: r.ErrorSource, Stdout: r.Stdout, Stderr: r.Stderr, StdoutBytes: r.StdoutBytes, StderrBytes: r.StderrBytes,
		StdoutTruncated: r.StdoutTruncated, StdoutBytesTruncated: r.StdoutBytesTruncated,
		StderrTruncated: r.StderrTruncated, StderrBytesTruncated: r.StderrBytesTruncated,
		StdoutLog: r.StdoutLog, StderrLog: r.StderrLog, StdoutLogBytes: r.StdoutLogBytes, StderrLogBytes: r.StderrLogBytes,
		StdoutLogSHA256: r.StdoutLogSHA256, StderrLogSHA256: r.StderrLogSHA256, StdoutLogMatch: r.StdoutLogMatch, StderrLogMatch: r.StderrLogMatch,
		Complete: r.Complete, Missing: toRanges(r.Missing),
		RequestedAt: r.RequestedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, Attempt: r.Attempt, Runner: r.Runner, Labels: r.Labels,
		RetryAt: r.RetryAt, Reason: r.Reason, Action: r.Action, Command: r.Command, Directory: r.Directory, RequestedBy: r.RequestedBy, PreparedAt: r.PreparedAt,
		DurationMS: r.DurationMS, Sealed: r.Sealed, Host: r.Host, PID: r.PID, CoreDumped: r.CoreDumped, OutOfMemory: r.OutOfMemory,
		UserMS: r.UserMS, SystemMS: r.SystemMS, MaxResidentBytes: r.MaxResidentBytes, TimeoutMS: r.TimeoutMS,
		StdinAcceptedBytes: r.StdinAcceptedBytes, StdinOfferedBytes: r.StdinOfferedBytes, TerminationSignals: []sentSignal{},
		StdoutSHA256: r.StdoutSHA256, StderrSHA256: r.StderrSHA256, StdoutDigestMatch: r.StdoutDigestMatch, StderrDigestMatch: r.StderrDigestMatch,
		StdoutPipeStillHeld: r.StdoutPipeStillHeld, StderrPipeStillHeld: r.StderrPipeStillHeld, Elided: toRanges(r.Elided),
		StdoutMaskedRanges: r.StdoutMaskedRanges, StderrMaskedRanges: r.StderrMaskedRanges, OutputErrors: r.OutputErrors,
		Attempts: r.Attempts, Contradictions: r.Contradictions, Facts: r.Facts, UnknownFacts: r.UnknownFacts, Version: r.Version,
		State: string(state),
	}
	if t := r.Termination; t != nil {
		c.Terminated, c.TerminationCause, c.TerminationBy, c.TerminationMessage, c.TerminationStartedAt = true, t.Cause, t.RequestedBy, t.Message, t.StartedAt
		for _, g := range t.Signals {
			c.TerminationSignals = append(c.TerminationSignals, sentSignal(g))
		}
	}
	return c, nil
}

// row is the inverse of recordOf, but for the state.
func (c *record) row() execution.Row {
	r := execution.Row{
		ExecutionID: c.ExecutionID, Status: c.Status, Succeeded: c.Succeeded, ExitCode: c.ExitCode, Signal: c.Signal,
		Error: c.Error, ErrorSource: c.ErrorSource, Stdout: c.Stdout, Stderr: c.Stderr, StdoutBytes: c.StdoutBytes, StderrBytes: c.StderrBytes,
		StdoutTruncated: c.StdoutTruncated, StdoutBytesTruncated: c.StdoutBytesTruncated,
		StderrTruncated: c.StderrTruncated, StderrBytesTruncated: c.StderrBytesTruncated,
		StdoutLog: c.StdoutLog, StderrLog: c.StderrLog, StdoutLogBytes: c.StdoutLogBytes, StderrLogBytes: c.StderrLogBytes,
		StdoutLogSHA256: c.StdoutLogSHA256, StderrLogSHA256: c.StderrLogSHA256, StdoutLogMatch: c.StdoutLogMatch, StderrLogMatch: c.StderrLogMatch,
		Complete: c.Complete, Missing: fromRanges(c.Missing),
		RequestedAt: utc(c.RequestedAt), StartedAt: utc(c.StartedAt), EndedAt: utc(c.EndedAt), Attempt: c.Attempt, Runner: c.Runner, Labels: c.Labels,
		RetryAt: utc(c.RetryAt), Reason: c.Reason, Action: c.Action, Command: c.Command, Directory: c.Directory, RequestedBy: c.RequestedBy, PreparedAt: utc(c.PreparedAt),
		DurationMS: c.DurationMS, Sealed: c.Sealed, Host: c.Host, PID: c.PID, CoreDumped: c.CoreDumped, OutOfMemory: c.OutOfMemory,
		UserMS: c.UserMS, SystemMS: c.SystemMS, MaxResidentBytes: c.MaxResidentBytes, TimeoutMS: c.TimeoutMS,
		StdinAcceptedBytes: c.StdinAcceptedBytes, StdinOfferedBytes: c.StdinOfferedBytes,
		StdoutSHA256: c.StdoutSHA256, StderrSHA256: c.StderrSHA256, StdoutDigestMatch: c.StdoutDigestMatch, StderrDigestMatch: c.StderrDigestMatch,
		StdoutPipeStillHeld: c.StdoutPipeStillHeld, StderrPipeStillHeld: c.StderrPipeStillHeld, Elided: fromRanges(c.Elided),
		StdoutMaskedRanges: c.StdoutMaskedRanges, StderrMaskedRanges: c.StderrMaskedRanges, OutputErrors: c.OutputErrors,
		Attempts: c.Attempts, Contradictions: c.Contradictions, Facts: c.Facts, UnknownFacts: c.UnknownFacts, Version: c.Version,
	}
	if c.Terminated {
		t := &execution.Termination{
			Cause: c.TerminationCause, RequestedBy: c.TerminationBy, Message: c.TerminationMessage,
			StartedAt: utc(c.TerminationStartedAt), Signals: []execution.SentSignal{},
		}
		for _, g := range c.TerminationSignals {
			t.Signals = append(t.Signals, execution.SentSignal{Signal: g.Signal, SentAt: utc(g.SentAt)})
		}
		r.Termination = t
	}
	return r
}

func toRanges(rs []execution.Range) []byteRange {
	out := make([]byteRange, len(rs))
	for i, r := range rs {
		out[i] = byteRange(r)
	}
	return out
}

func fromRanges(rs []byteRange) []execution.Range {
	out := make([]execution.Range, len(rs))
	for i, r := range rs {
		out[i] = execution.Range(r)
	}
	return out
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}
