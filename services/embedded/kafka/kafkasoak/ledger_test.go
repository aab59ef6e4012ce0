package main

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/kafka"
)

func at(assignment uint64, offset int64) kafka.Position {
	return kafka.Position{Assignment: assignment, Offset: offset}
}

// TestLedgerSees breaks each promise once: a soak that cannot fail says nothing.
func TestLedgerSees(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(l *ledger)
		want string
	}{
		"order of a key":        {func(l *ledger) { l.deliverAt("7/0", at(1, 0)); l.deliverAt("7/2", at(1, 1)) }, "key 7: 2 came when 1 was due"},
		"skip in an assignment": {func(l *ledger) { l.deliverAt("7/0", at(1, 0)); l.deliverAt("8/0", at(1, 2)) }, "offset 1 was skipped"},
		"skip at a new assignment": {func(l *ledger) {
			l.deliverAt("7/0", at(1, 0))
			l.deliverAt("7/1", at(1, 1))
			l.settled[0].add(0)
			l.deliverAt("7/2", at(2, 2))
		}, "offset 1 was skipped"},
		"commit too early": {func(l *ledger) { l.settled[0].add(0); l.settled[0].add(2); l.committed(map[int]int64{0: 3}) }, "offset 3 is committed, 1 is not acknowledged"},
		"nothing": {func(l *ledger) {
			l.deliverAt("7/0", at(1, 0))
			l.settled[0].add(0)
			l.deliverAt("7/1", at(1, 1))
			l.committed(map[int]int64{0: 1})
			l.deliverAt("7/1", at(2, 1))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger()
			c.do(l)
			got := strings.Join(l.problems(), "; ")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("noted %q", got)
			}
		})
	}
	l := newLedger()
	l.publish([]*message.Message{message.NewMessage("7/0", nil), message.NewMessage("7/1", nil)})
	l.deliverAt("7/0", at(1, 0))
	if got := l.missing(); len(got) != 1 || got[0] != "key 7: delivered 1 of 2" {
		t.Errorf("missing %q", got)
	}
}
