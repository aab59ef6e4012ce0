package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events/kafka"
)

// ledger is what was seen, from outside the transport.
type ledger struct {
	mu      sync.Mutex
	sent    map[int]int      // per key: acknowledged by the broker, all below too
	next    map[int]int      // per key: first number not delivered yet
	settled map[int]*settled // per partition
	last    map[place]int64  // per assignment: offset delivered last
	broken  []string

	published, delivered, again, commits int
}

type place struct {
	partition  int
	assignment uint64
}

// settled is what consumers acknowledged of a partition: everything below floor, and above.
type settled struct {
	floor int64
	above map[int64]bool
}

func (s *settled) has(offset int64) bool { return offset < s.floor || s.above[offset] }

func (s *settled) add(offset int64) {
	if offset < s.floor {
		return
	}
	s.above[offset] = true
	for s.above[s.floor] {
		delete(s.above, s.floor)
		s.floor++
	}
}

func newLedger() *ledger {
	l := &ledger{sent: map[int]int{}, next: map[int]int{}, settled: map[int]*settled{}, last: map[place]int64{}}
	for p := range partitions {
		l.settled[p] = &settled{above: map[int64]bool{}}
	}
	return l
}

func parse(id string) (k, n int) {
	left, right, _ := strings.Cut(id, "/")
	k, _ = strconv.Atoi(left)
	n, _ = strconv.Atoi(right)
	return k, n
}

// publish notes what the broker acknowledged.
func (l *ledger) publish(batch []*message.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range batch {
		k, n := parse(m.UUID)
		l.sent[k] = n + 1
		l.published++
	}
}

// deliver notes a delivery, before anything is done with it.
func (l *ledger) deliver(m *message.Message) {
	at, _ := kafka.PositionFromContext(m.Context())
	l.deliverAt(m.UUID, at)
}

func (l *ledger) deliverAt(id string, at kafka.Position) {
	k, n := parse(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered++
	switch {
	case n == l.next[k]:
		l.next[k]++
	case n < l.next[k]:
		l.again++
	default:
		l.note("key %d: %d came when %d was due (partition %d, offset %d)", k, n, l.next[k], at.Partition, at.Offset)
	}
	p := place{at.Partition, at.Assignment}
	from := int64(0)
	if last, ok := l.last[p]; ok {
		from = last + 1
	}
	for o := max(from, l.settled[p.partition].floor); o < at.Offset; o++ {
		if !l.settled[p.partition].has(o) {
			l.note("partition %d, assignment %d: offset %d was skipped, %d came", p.partition, p.assignment, o, at.Offset)
			break
		}
	}
	l.last[p] = at.Offset
}

// acknowledge notes an acknowledgement, before it is given.
func (l *ledger) acknowledge(m *message.Message) {
	at, _ := kafka.PositionFromContext(m.Context())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settled[at.Partition].add(at.Offset)
}

// committed compares the group's offsets with the acknowledgements.
func (l *ledger) committed(offsets map[int]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits++
	for p, o := range offsets {
		if floor := l.settled[p].floor; o > floor {
			l.note("partition %d: offset %d is committed, %d is not acknowledged", p, o, floor)
		}
	}
}

// missing names what the broker acknowledged and nobody received.
func (l *ledger) missing() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for k, n := range l.sent {
		if l.next[k] < n {
			out = append(out, fmt.Sprintf("key %d: delivered %d of %d", k, l.next[k], n))
		}
	}
	return out
}

func (l *ledger) promise(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(format, args...)
}

func (l *ledger) note(format string, args ...any) {
	l.broken = append(l.broken, fmt.Sprintf(format, args...))
}

func (l *ledger) problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.broken[:min(len(l.broken), 50)]...)
}
