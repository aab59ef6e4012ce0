package api

import "time"

// The states of a runner.
const (
	// RunnerReady takes work, as far as it has free slots.
	RunnerReady = "ready"
	// RunnerCordoned lives and takes no new work, because somebody said so.
	RunnerCordoned = "cordoned"
	// RunnerStopping ends what it runs; RunnerStopped has.
	RunnerStopping = "stopping"
	RunnerStopped  = "stopped"
	// RunnerSilent has not been heard of for some seconds.
	RunnerSilent = "silent"
)

// Runner is what a runner's newest heartbeat says.
type Runner struct {
	Runner string `json:"runner" doc:"The runner's id."`
	State  string `json:"state" enum:"ready,cordoned,stopping,stopped,silent"`
	Host   string `json:"host"`
	Slots  uint32 `json:"slots" doc:"How many processes it runs side by side."`
	// Running are the attempts that it has.
	Running   []RunningAttempt `json:"running"`
	Version   string           `json:"version"`
	StartedAt *time.Time       `json:"started_at"`
	// LastSeen is when the heartbeat came.
	LastSeen time.Time `json:"last_seen"`
	// AgeRecipient is the key for which secrets are encrypted; empty when it has none.
	AgeRecipient string `json:"age_recipient,omitempty"`
}

// Lives tells whether the runner may take work soon, so that secrets must be encrypted for it, too.
func (r Runner) Lives() bool { return r.State == RunnerReady || r.State == RunnerCordoned }

// RunningAttempt is an attempt that a runner has.
type RunningAttempt struct {
	ExecutionID string `json:"execution_id"`
	Attempt     uint32 `json:"attempt"`
}

// RunnersResponse lists the runners of which something was heard in the last minutes, by id.
type RunnersResponse struct {
	Runners []Runner `json:"runners"`
}

// CordonRequest says who asks a runner to take no more attempts, or to take them again, and why.
type CordonRequest struct {
	Reason      string `json:"reason,omitempty"`
	RequestedBy string `json:"requested_by,omitempty"`
}

// CordonResponse says that the wish is in the log. The runner's next heartbeat says that it follows.
type CordonResponse struct {
	Runner   string `json:"runner"`
	Cordoned bool   `json:"cordoned"`
	// EventID is the id of the CordonRequested event.
	EventID string `json:"event_id"`
}
