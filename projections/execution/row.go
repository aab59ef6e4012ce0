package execution

import (
	"time"
)

// Statuses of a row. The last six are terminal: nothing more is expected. Retrying is an end that another attempt follows.
const (
	StatusRequested = "requested"
	StatusPrepared  = "prepared"
	StatusRunning   = "running"
	StatusRetrying  = "retrying"
	StatusSucceeded = "succeeded"
	StatusFailed    = "failed"
	StatusTimeout   = "timeout"
	StatusCancelled = "cancelled"
	StatusLost      = "lost"
	StatusDeleted   = "deleted"
)

// Row is an execution as people read it. nil is "not known". Everything but Attempts, Facts, UnknownFacts,
// Contradictions and Version is about the latest attempt. Times are by the producer's clock, in UTC.
type Row struct {
	ExecutionID string `json:"execution_id"`
	Status      string `json:"status"`
	// Succeeded is nil before the end, between two attempts, and when the runner was lost.
	Succeeded *bool  `json:"succeeded"`
	ExitCode  *int32 `json:"exit_code"`
	// Signal is the name without SIG.
	Signal *string `json:"signal"`
	// Error is one text for people, at most 4 KiB; nil when the execution succeeded or has not ended.
	Error *string `json:"error"`
	// ErrorSource says where Error is from: wait, stdin, stderr, exit, signal, timeout, prepare, start, runner.
	ErrorSource *string `json:"error_source"`
	// Stdout and Stderr are the first 64 KiB and the last 64 KiB, as valid UTF-8 (a wrong byte is U+FFFD). A line
	// "… N bytes left out …" stands for bytes that are not shown, whatever the cause. "" is known to be empty.
	Stdout *string `json:"stdout"`
	Stderr *string `json:"stderr"`
	// StdoutBytes is the seal's total, before the seal the highest end seen.
	StdoutBytes *uint64 `json:"stdout_bytes"`
	StderrBytes *uint64 `json:"stderr_bytes"`
	// StdoutTruncated says that Stdout does not show everything; StdoutBytesTruncated how many bytes it does not show.
	StdoutTruncated      *bool   `json:"stdout_truncated"`
	StdoutBytesTruncated *uint64 `json:"stdout_bytes_truncated"`
	StderrTruncated      *bool   `json:"stderr_truncated"`
	StderrBytesTruncated *uint64 `json:"stderr_bytes_truncated"`
	// StdoutLog is the URI of the file that the stream is recorded in; nil until it is.
	StdoutLog *string `json:"stdout_log"`
	StderrLog *string `json:"stderr_log"`
	// StdoutLogBytes and StdoutLogSHA256 are the file's size and digest in hex, before any compression.
	StdoutLogBytes  *uint64 `json:"stdout_log_bytes"`
	StderrLogBytes  *uint64 `json:"stderr_log_bytes"`
	StdoutLogSHA256 *string `json:"stdout_log_sha256"`
	StderrLogSHA256 *string `json:"stderr_log_sha256"`
	// StdoutLogMatch says whether the file has the bytes that the seal states; nil when that could not be compared.
	StdoutLogMatch *bool `json:"stdout_log_match"`
	StderrLogMatch *bool `json:"stderr_log_match"`
	// Complete is nil until sealed, and when it can neither be proven nor refuted (see the package comment).
	Complete *bool `json:"complete"`
	// Missing are the ranges that should be there and are not, with those the seal states as lost.
	Missing     []Range           `json:"missing"`
	RequestedAt *time.Time        `json:"requested_at"`
	StartedAt   *time.Time        `json:"started_at"`
	EndedAt     *time.Time        `json:"ended_at"`
	Attempt     *uint32           `json:"attempt"`
	Runner      *string           `json:"runner"`
	Labels      map[string]string `json:"labels"`

	// RetryAt is when the next attempt is requested; nil when none follows, or that is not known yet.
	RetryAt *time.Time `json:"retry_at"`
	// Reason is the machine's word for an end that was no success: exit_code, signal, timeout, cancel,
	// runner_shutdown, wait_failed, runner_lost, unknown_status, or why it was not prepared or started (unknown_action, command_not_found …).
	Reason      *string    `json:"reason"`
	Action      *string    `json:"action"`
	Command     []string   `json:"command"`
	Directory   *string    `json:"directory"`
	RequestedBy *string    `json:"requested_by"`
	PreparedAt  *time.Time `json:"prepared_at"`
	DurationMS  *int64     `json:"duration_ms"`
	// Sealed says that the output's totals are known: there is a seal, or there never was a process.
	Sealed     bool    `json:"sealed"`
	Host       *string `json:"host"`
	PID        *int64  `json:"pid"`
	CoreDumped *bool   `json:"core_dumped"`
	// OutOfMemory says that there is evidence of the kernel's out-of-memory killer.
	OutOfMemory         *bool        `json:"out_of_memory"`
	UserMS              *int64       `json:"user_ms"`
	SystemMS            *int64       `json:"system_ms"`
	MaxResidentBytes    *uint64      `json:"max_resident_bytes"`
	TimeoutMS           *int64       `json:"timeout_ms"`
	StdinAcceptedBytes  *uint64      `json:"stdin_accepted_bytes"`
	StdinOfferedBytes   *uint64      `json:"stdin_offered_bytes"`
	Termination         *Termination `json:"termination"`
	StdoutSHA256        *string      `json:"stdout_sha256"`
	StderrSHA256        *string      `json:"stderr_sha256"`
	StdoutDigestMatch   *bool        `json:"stdout_digest_match"`
	StderrDigestMatch   *bool        `json:"stderr_digest_match"`
	StdoutPipeStillHeld *bool        `json:"stdout_pipe_still_held"`
	StderrPipeStillHeld *bool        `json:"stderr_pipe_still_held"`
	// Elided are the ranges left out on purpose (stream limit).
	Elided []Range `json:"elided"`
	// StdoutMaskedRanges is how many runs of bytes were masked because they were secrets; nil until sealed.
	StdoutMaskedRanges *uint64 `json:"stdout_masked_ranges"`
	StderrMaskedRanges *uint64 `json:"stderr_masked_ranges"`
	// OutputErrors tells of streams that could not be read further.
	OutputErrors []string `json:"output_errors"`
	// Attempts is how many attempts were met.
	Attempts uint64 `json:"attempts"`
	// Contradictions names facts that cannot all be true, and limits that were met.
	Contradictions []string `json:"contradictions"`
	// Facts counts the facts by event name (OutputChunk), for types not known here by full type.
	Facts map[string]uint64 `json:"facts"`
	// UnknownFacts counts those that were skipped since their type or stream is not known here.
	UnknownFacts uint64 `json:"unknown_facts"`
	Version      uint64 `json:"version"`
}

// Range is the half-open range [Start, End) of a stream's bytes.
type Range struct {
	Stream string `json:"stream"`
	Start  uint64 `json:"start"`
	End    uint64 `json:"end"`
}

// Termination says that and how Verbatim ended the process.
type Termination struct {
	// Cause is timeout, cancel or runner_shutdown.
	Cause       *string      `json:"cause"`
	RequestedBy *string      `json:"requested_by"`
	Message     *string      `json:"message"`
	StartedAt   *time.Time   `json:"started_at"`
	Signals     []SentSignal `json:"signals"`
}

// SentSignal is one signal to the process group.
type SentSignal struct {
	Signal string     `json:"signal"`
	SentAt *time.Time `json:"sent_at"`
}

// Row works out the row. It changes nothing.
func (s *State) Row() Row {
	if s.Deleted() {
		return s.deletedRow()
	}
	r := Row{
		ExecutionID: s.id, Status: StatusRequested,
		Missing: []Range{}, Elided: []Range{}, OutputErrors: []string{}, Contradictions: s.contradictions(),
		Attempts: s.numbers.Len(), Version: s.Version(),
	}
	r.Facts, r.UnknownFacts = s.factCounts()
	a := s.latest()
	if a == nil {
		a = &attempt{}
	} else {
		r.Attempt = &a.number
	}
	s.identify(&r, a)
	a.times(&r)
	a.process(&r)
	a.ledger(&r, s.limited)
	a.view(&r)
	a.files(&r)
	e, next := s.ending(a)
	a.outcome(&r, e, next)
	return r
}

// identify fills in what was asked for. The launch spec is preferred: it is what runs.
func (s *State) identify(r *Row, a *attempt) {
	req, prep := s.requested.data, a.prepared.data
	r.Labels = map[string]string{}
	var requestedAt time.Time
	if s.requested.set {
		requestedAt = s.requested.at
		r.Action = text(req.GetAction().GetName())
		r.Command, r.Directory = req.GetCommand().GetArgv(), text(req.GetCommand().GetDirectory())
		r.RequestedBy = text(req.GetRequestedBy())
		r.TimeoutMS = milliseconds(req.GetTimeout())
		r.Labels = copyLabels(req.GetLabels())
	}
	if a.prepared.set {
		if requestedAt.IsZero() {
			requestedAt = timeOf(prep.GetRequestedAt(), time.Time{})
		}
		r.Action = or(text(prep.GetAction()), r.Action)
		r.Command = prep.GetArgv()
		r.Directory = or(text(prep.GetDirectory()), r.Directory)
		r.RequestedBy = or(text(prep.GetRequestedBy()), r.RequestedBy)
		r.TimeoutMS = milliseconds(prep.GetTimeout())
		if !s.requested.set {
			r.Labels = copyLabels(prep.GetLabels())
		}
	}
	r.Command = append([]string{}, r.Command...)
	r.RequestedAt = when(requestedAt)
}

func (a *attempt) times(r *Row) {
	r.PreparedAt = when(a.prepared.at)
	if a.started.set {
		r.StartedAt = when(timeOf(a.started.data.GetProcessStartedAt(), a.started.at))
	}
	switch {
	case a.exited.set:
		r.EndedAt = when(timeOf(a.exited.data.GetEndedAt(), a.exited.at))
	case a.waitFailed.set:
		r.EndedAt = when(timeOf(a.waitFailed.data.GetFailedAt(), a.waitFailed.at))
	case a.startFailed.set:
		r.EndedAt = when(a.startFailed.at)
	case a.neverRan():
		r.EndedAt = when(a.preparationFailed.at)
	}
	if r.StartedAt != nil && r.EndedAt != nil {
		r.DurationMS = ptr(r.EndedAt.Sub(*r.StartedAt).Milliseconds())
	}
}

// process fills in what the runner says of the process.
func (a *attempt) process(r *Row) {
	switch {
	case a.started.set:
		d := a.started.data
		r.Runner, r.Host, r.PID = text(d.GetRunner()), text(d.GetHost()), ptr(d.GetPid())
	case a.startFailed.set:
		r.Runner, r.Host = text(a.startFailed.data.GetRunner()), text(a.startFailed.data.GetHost())
	case a.lost.set:
		r.Runner = text(a.lost.data.GetRunner())
	}
	if a.stdinFailed.set {
		r.StdinAcceptedBytes, r.StdinOfferedBytes = ptr(a.stdinFailed.data.GetAcceptedBytes()), ptr(a.stdinFailed.data.GetOfferedBytes())
	}
	if a.exited.set {
		d := a.exited.data
		r.CoreDumped, r.OutOfMemory = ptr(d.GetCoreDumped()), ptr(d.GetOutOfMemory() != nil)
		if u := d.GetUsage(); u != nil {
			r.UserMS, r.SystemMS = milliseconds(u.GetUserTime()), milliseconds(u.GetSystemTime())
			r.MaxResidentBytes = ptr(u.GetMaxResidentBytes())
		}
	}
	r.Termination = a.termination()
	for _, f := range a.readFailures.facts {
		r.OutputErrors = append(r.OutputErrors, readFailure(f.data))
	}
}
