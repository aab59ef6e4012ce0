// Package forgery tells what a service said itself from what others said in its name. A source is only a word, and whoever may write to the
// log may use any. A service that takes its next number from the last one of its source would stop at a number that somebody made up.
package forgery

import (
	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
)

// In returns a function that reports whether a fact has the producer's source and is not its own. It is not when its id does not follow from
// what it says, or when its number is above the count of the facts of that source and attempt: the producer leaves out no number.
// What it does not report has small numbers, and so has the next fact. facts are all there are of an execution, or of one attempt; copies
// may be among them.
func In(facts []clickhouse.ArchivedEvent, p events.Producer) func(*events.Event) bool {
	counts := map[uint32]uint64{}
	for i := range facts {
		if e := &facts[i].Event; e.Source == p.Source {
			counts[e.Attempt]++
		}
	}
	return func(e *events.Event) bool {
		return e.Source == p.Source && (e.Sequence > counts[e.Attempt] || e.ID != events.ID(e.Subject, e.Attempt, p.Name, e.Sequence))
	}
}
