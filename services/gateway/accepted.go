package gateway

import (
	"sync"

	"verbatim.dev/projections/execution"
)

// How much is remembered of what was accepted: enough for the seconds until the projector has it.
const (
	acceptedRows  = 10_000
	acceptedBytes = 32 << 20
)

// accepted remembers the executions that this gateway accepted last, so that they exist for readers from their
// 202 on. It is safe for concurrent use.
type accepted struct {
	mu    sync.Mutex
	rows  map[string]acceptedRow
	order []string
	bytes int
}

type acceptedRow struct {
	row   execution.Row
	bytes int
}

func newAccepted() *accepted { return &accepted{rows: map[string]acceptedRow{}} }

func (a *accepted) add(row execution.Row, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.rows[row.ExecutionID]; known {
		return
	}
	a.rows[row.ExecutionID] = acceptedRow{row, bytes}
	a.order = append(a.order, row.ExecutionID)
	a.bytes += bytes
	for len(a.order) > acceptedRows || a.bytes > acceptedBytes {
		oldest := a.order[0]
		a.order = a.order[1:]
		a.bytes -= a.rows[oldest].bytes
		delete(a.rows, oldest)
	}
}

func (a *accepted) get(id string) (execution.Row, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.rows[id]
	return r.row, ok
}
