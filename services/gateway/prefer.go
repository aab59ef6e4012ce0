package gateway

import (
	"strconv"
	"strings"
	"time"
)

// longestWait bounds what a client can ask a read to wait.
const longestWait = time.Minute

// Preference is what a read may say of itself (RFC 7240). (It is exported for huma, which finds no others.)
type Preference struct {
	Prefer string `header:"Prefer" doc:"wait=SECONDS (RFC 7240), 0 to 60: how long the answer may wait until the services have stored what was written before. After that it comes as it is, with Verbatim-Stale. Absent: 2 s for a row, 1 s for a list or a query, 30 s for output and events."`
}

// wait returns what the client prefers, else the budget given. As the RFC wants it, what is not understood is as if it was not said.
func (p Preference) wait(budget time.Duration) time.Duration {
	for said := range strings.SplitSeq(p.Prefer, ",") {
		said, _, _ = strings.Cut(said, ";")
		name, value, _ := strings.Cut(said, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 16)
		if err != nil {
			return budget
		}
		return min(time.Duration(seconds)*time.Second, longestWait)
	}
	return budget
}
