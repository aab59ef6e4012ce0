// Package fleet knows which runners there are, from their heartbeats: for each the newest one, and when it came.
//
//	ready ──► cordoned ──► ready      what the runner says of itself
//	  │           │
//	  ├───────────┴──► stopping ──► stopped     it said that it ends, and then nothing more
//	  └─► silent                                nothing came for SilentAfter
//
// It is bounded whatever is written to the topic: Limit runners, of which the one that was silent for the longest goes first,
// and none for longer than ForgottenAfter.
package fleet

import (
	"slices"
	"strings"
	"sync"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/secret"
)

const (
	// SilentAfter is how long nothing may come from a runner that lives: five of its heartbeats.
	SilentAfter = 10 * time.Second
	// ForgottenAfter is how long a runner of which nothing comes is listed.
	ForgottenAfter = 10 * time.Minute
	// Limit is how many runners are known at one time.
	Limit = 1000
	// maxBytes bounds a heartbeat. One attempt takes about 50 bytes, and a runner has at most 10,000 slots.
	maxBytes = 1 << 20
)

// Fleet knows the runners. It is safe for concurrent use.
type Fleet struct {
	mu      sync.Mutex
	runners map[string]api.Runner
}

// New returns a fleet without runners.
func New() *Fleet { return &Fleet{runners: make(map[string]api.Runner)} }

// Take takes a heartbeat that was received at a time, in the order of the topic. Other events are ignored, and so is a heartbeat that says
// to be of another runner than its subject.
func (f *Fleet) Take(e events.Event, received time.Time) {
	beat, ok := e.Data.(*executionv1.RunnerHeartbeat)
	if !ok || len(e.Payload) > maxBytes || beat.GetRunner() != e.Subject {
		return
	}
	r := api.Runner{
		Runner: beat.GetRunner(), State: api.RunnerReady, Host: beat.GetHost(), Slots: beat.GetSlots(), Running: []api.RunningAttempt{},
		Version: beat.GetVersion(), LastSeen: received.UTC(), AgeRecipient: beat.GetAgeRecipient(),
	}
	switch {
	case beat.GetStopping():
		r.State = api.RunnerStopping
	case beat.GetCordoned():
		r.State = api.RunnerCordoned
	}
	for _, a := range beat.GetRunning() {
		r.Running = append(r.Running, api.RunningAttempt{ExecutionID: a.GetExecution(), Attempt: a.GetAttempt()})
	}
	if at := beat.GetStartedAt(); at.IsValid() {
		started := at.AsTime()
		r.StartedAt = &started
	}
	if secret.CheckRecipient(r.AgeRecipient) != nil {
		r.AgeRecipient = ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runners[r.Runner] = r
	if len(f.runners) <= Limit {
		return
	}
	oldest := r.Runner
	for id, other := range f.runners {
		if other.LastSeen.Before(f.runners[oldest].LastSeen) {
			oldest = id
		}
	}
	delete(f.runners, oldest)
}

// List returns the runners as of a time, by id.
func (f *Fleet) List(now time.Time) []api.Runner {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]api.Runner, 0, len(f.runners))
	for id, r := range f.runners {
		age := now.Sub(r.LastSeen)
		switch {
		case age > ForgottenAfter:
			delete(f.runners, id)
			continue
		case age > SilentAfter && r.State == api.RunnerStopping:
			r.State = api.RunnerStopped
		case age > SilentAfter:
			r.State = api.RunnerSilent
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b api.Runner) int { return strings.Compare(a.Runner, b.Runner) })
	return list
}
