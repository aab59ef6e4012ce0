package files

import (
	"sync"
	"time"

	"verbatim.dev/projections/clickhouse"
)

// attempt is what is remembered of an attempt. All of it can be found again.
type attempt struct {
	name      clickhouse.Attempt
	partition int
	touched   time.Time // With Recorder.mu.

	// writing is held by who writes parts or artifacts.
	writing sync.Mutex
	// parted is up to where parts are, by stream; nil until that was looked up. With writing.
	parted map[string]uint64

	mu sync.Mutex
	// lastEnd is the offset of the last end met, -1: none. asked says that the archive was asked for it.
	lastEnd int64
	asked   bool
	// pending is how many bytes came since the last flush, the first of them at since.
	pending  uint64
	since    time.Time
	flushing bool
	// next is the making that whoever comes now waits for; working says that there is one who makes.
	next    *making
	working bool
	// made is when the last making ended, took how long it lasted.
	made time.Time
	took time.Duration
}

// making is one making of the artifacts, which many may wait for.
type making struct {
	done chan struct{}
	err  error
}

func (a *attempt) endedAt(offset int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastEnd = max(a.lastEnd, offset)
	a.pending, a.since = 0, time.Time{}
}

func (a *attempt) lookedUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = true
}

// end is the offset of the last end, -1 when there is none, and whether that is known.
func (a *attempt) end() (offset int64, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lastEnd, a.asked
}

func (a *attempt) received(bytes uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.since.IsZero() {
		a.since = time.Now()
	}
	a.pending += bytes
}

// due says whether the attempt is to be flushed now, and then counts as being flushed; idle, that nothing is under way.
func (a *attempt) due(now time.Time, bytes uint64, delay time.Duration) (due, idle bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flushing || a.working || a.next != nil {
		return false, false
	}
	if a.since.IsZero() {
		return false, true
	}
	a.flushing = a.lastEnd < 0 && (a.pending >= bytes || now.Sub(a.since) >= delay)
	return a.flushing, false
}

// begun forgets what came until now, since it is about to be flushed.
func (a *attempt) begun() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending, a.since = 0, time.Time{}
}

// flushed ends a flush; one that failed is due again after the delay.
func (a *attempt) flushed(failed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flushing = false
	if failed && a.lastEnd < 0 && a.since.IsZero() {
		a.since = time.Now()
	}
}
