package watchdog

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// The pauses of a policy that names none.
const (
	firstPause   = time.Second
	longestPause = 5 * time.Minute
)

// pause is how long the next attempt waits after this one: it doubles from attempt to attempt, and is shortened by up to a half. By how
// much follows from the execution and the attempt, so that every recorder works out the same.
func pause(p *executionv1.RetryPolicy, execution string, attempt uint32) time.Duration {
	first, longest := p.GetBackoff().AsDuration(), p.GetMaxBackoff().AsDuration()
	if first <= 0 {
		first = firstPause
	}
	if longest <= 0 {
		longest = longestPause
	}
	d := min(first, longest)
	for i := uint32(1); i < attempt && d < longest; i++ {
		d = min(d, longest-d) + d // 2*d or longest, without overflow.
	}
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint32([]byte(execution), attempt))
	const parts = 1 << 10
	return d - d/2*time.Duration(h.Sum64()%parts)/parts
}
