package api

import (
	"encoding/json"

	"verbatim.dev/projections/execution"
)

// SubmitRequest asks for an execution: exactly one of Command and Action.
type SubmitRequest struct {
	Command *Command `json:"command,omitempty" doc:"An ad-hoc command. Exactly one of command and action is given."`
	Action  *Action  `json:"action,omitempty" doc:"A named action and its parameters."`
	// Timeout and Grace are Go durations: "30s", "1h30m".
	Timeout     string       `json:"timeout,omitempty" example:"30s" doc:"How long the process may run from its start. Absent: no limit."`
	Grace       string       `json:"grace,omitempty" example:"5s" doc:"How long a terminated process gets between TERM and KILL. Absent: the runner's own."`
	Stdin       []byte       `json:"stdin,omitempty" doc:"What the process gets on its standard input, in base64. Never a secret."`
	StdinUpload *StdinUpload `json:"stdin_upload,omitempty" doc:"In place of stdin, when it is large: what POST /v1/stdin answered."`
	// Secrets are age files by name, each for every runner that lives; GET /v1/runners has their keys.
	Secrets     map[string][]byte `json:"secrets,omitempty" doc:"Secrets by name, each an age file in base64, encrypted for the keys of the runners. The process gets them as one line of JSON on its standard input. Not together with stdin."`
	Labels      map[string]string `json:"labels,omitempty" doc:"At most 64, for finding the execution again."`
	RequestedBy string            `json:"requested_by,omitempty" doc:"Who asks, for people."`
	// OutputLimitBytes is 0 for the default and -1 for no limit.
	OutputLimitBytes int64   `json:"output_limit_bytes,omitempty" minimum:"-1" example:"10485760" doc:"How many bytes of each output stream are published when there are more: a fifth from its beginning, the rest (at most 8 MiB) from its end. What lies between is counted, digested and listed as elided. -1: no limit. Absent or 0: 10485760."`
	Limits           *Limits `json:"limits,omitempty" doc:"Bounds and identity of the process. Absent: the runner's own."`
	Retry            *Retry  `json:"retry,omitempty" doc:"After which ends the execution is tried again. Absent: never."`
}

// Retry says after which ends an execution is tried again.
type Retry struct {
	Retries int      `json:"retries" minimum:"1" maximum:"100" doc:"How many attempts may follow the first one."`
	On      []string `json:"on" example:"[\"failed\",\"timeout\"]" doc:"After which ends: lost (it ended through no doing of its own; it may still run), failed (an exit code other than 0, or a signal), timeout."`
	// Backoff and MaxBackoff are Go durations.
	Backoff    string `json:"backoff,omitempty" example:"1s" doc:"The pause before the second attempt; it doubles with each further one, and is shortened by up to a half. Absent: 1s."`
	MaxBackoff string `json:"max_backoff,omitempty" example:"5m" doc:"The longest pause. Absent: 5m."`
}

// StdinUpload says where an uploaded standard input lies.
type StdinUpload struct {
	Upload      string `json:"upload" doc:"The upload's id."`
	StartOffset int64  `json:"start_offset" doc:"The parts lie from this Kafka offset on."`
	EndOffset   int64  `json:"end_offset" doc:"And before this one."`
	SizeBytes   uint64 `json:"size_bytes"`
	SHA256      []byte `json:"sha256" doc:"Digest of the bytes, in base64."`
}

// Command is a program and its arguments; no shell is involved.
type Command struct {
	Argv        []string          `json:"argv" doc:"Program and arguments, at least one."`
	Environment map[string]string `json:"environment,omitempty" doc:"Variables added to the runner's clean environment."`
	Directory   string            `json:"directory,omitempty" doc:"Working directory on the runner, absolute. Absent: a fresh empty one."`
}

// Action names a reusable thing to run.
type Action struct {
	Name       string          `json:"name"`
	Parameters json.RawMessage `json:"parameters,omitempty" doc:"One JSON object."`
}

// SubmitResponse says under which id an execution was accepted.
type SubmitResponse struct {
	ExecutionID string `json:"execution_id"`
	Links       Links  `json:"links"`
}

// Links are the paths below which an execution is found.
type Links struct {
	Self   string `json:"self"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
	Events string `json:"events"`
	Tail   string `json:"tail"`
	Cancel string `json:"cancel"`
}

// LinksOf returns the paths of an execution.
func LinksOf(id string) Links {
	self := "/v1/executions/" + id
	return Links{
		Self: self, Stdout: self + "/output/stdout", Stderr: self + "/output/stderr",
		Events: self + "/events", Tail: self + "/tail", Cancel: self + "/cancel",
	}
}

// CancelRequest asks to stop an execution.
type CancelRequest struct {
	Reason      string `json:"reason,omitempty"`
	RequestedBy string `json:"requested_by,omitempty"`
}

// CancelResponse says that the wish to stop an execution is in the log.
type CancelResponse struct {
	ExecutionID string `json:"execution_id"`
	// EventID is the id of the CancelRequested event.
	EventID string `json:"event_id"`
}

// ListResponse is one page of rows, newest first.
type ListResponse struct {
	Executions []execution.Row `json:"executions"`
	// Next is what to ask for as `before` for the next page; empty at the end.
	Next string `json:"next,omitempty"`
}

// QueryRequest is one read-only ClickHouse statement.
type QueryRequest struct {
	SQL    string `json:"sql" doc:"One statement: SELECT, WITH, SHOW, DESCRIBE, EXPLAIN or EXISTS."`
	Format string `json:"format,omitempty" example:"JSONEachRow" doc:"A ClickHouse output format. Absent: PrettyCompactMonoBlock."`
	// Parameters are values for the statement's {name:Type}.
	Parameters map[string]string `json:"parameters,omitempty" doc:"Values for the statement's {name:Type}, in ClickHouse's text form."`
}

// Health lists the checks of a readiness answer.
type Health struct {
	Ready  bool    `json:"ready"`
	Checks []Check `json:"checks"`
}

// Check is one part that must work.
type Check struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// Problem is an error as RFC 9457 writes it.
type Problem struct {
	Type   string          `json:"type,omitempty"`
	Title  string          `json:"title,omitempty"`
	Status int             `json:"status,omitempty"`
	Detail string          `json:"detail,omitempty"`
	Errors []ProblemDetail `json:"errors,omitempty"`
}

// ProblemDetail names one of several faults of a request.
type ProblemDetail struct {
	Message  string `json:"message,omitempty"`
	Location string `json:"location,omitempty"`
}

// Limits are the bounds and the identity of a process. What is asked for and cannot be had on the runner is a failed start, never a
// process without it.
type Limits struct {
	MemoryBytes        *uint64 `json:"memory_bytes,omitempty" example:"536870912" doc:"Memory of all processes of the execution together (cgroup)."`
	CPUMillis          *uint64 `json:"cpu_millis,omitempty" example:"500" doc:"Processor time of all processes of the execution together, in thousandths of one processor (cgroup)."`
	Processes          *uint64 `json:"processes,omitempty" doc:"How many processes and threads the execution may have (cgroup)."`
	OpenFiles          *uint64 `json:"open_files,omitempty" doc:"RLIMIT_NOFILE."`
	UserProcesses      *uint64 `json:"user_processes,omitempty" doc:"RLIMIT_NPROC: processes and threads of the user on the whole machine."`
	FileSizeBytes      *uint64 `json:"file_size_bytes,omitempty" doc:"RLIMIT_FSIZE."`
	CPUSeconds         *uint64 `json:"cpu_seconds,omitempty" doc:"RLIMIT_CPU: processor time of each process; then XCPU, and a second later KILL."`
	AddressSpaceBytes  *uint64 `json:"address_space_bytes,omitempty" doc:"RLIMIT_AS."`
	CoreBytes          *uint64 `json:"core_bytes,omitempty" doc:"RLIMIT_CORE."`
	Umask              string  `json:"umask,omitempty" example:"027" doc:"In octal. Absent: the runner's own."`
	User               string  `json:"user,omitempty" doc:"Name or number of a user of the runner's machine. Absent: the runner's own."`
	Group              string  `json:"group,omitempty" doc:"Name or number of a group. Absent: the user's own."`
	AllowNewPrivileges bool    `json:"allow_new_privileges,omitempty" doc:"Let set-user-ID programs such as sudo work. Otherwise no_new_privs is set (prctl(2))."`
}
