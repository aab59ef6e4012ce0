package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// scanInterval is how soon an answer in the middle of the window is noticed. The oldest message's answer
// is noticed at once; watching each of the others would cost a goroutine per message.
const scanInterval = 20 * time.Millisecond

// partition delivers one partition during one generation. All of it belongs to the goroutine of run, but
// for the fetcher, which hands over through fetched, and claims, which come from CommitSync.
type partition struct {
	sub       *subscription
	number    uint64 // Position.Assignment
	committer committer
	id        int
	from      int64
	log       *slog.Logger

	window    *window[*delivery]
	pending   []*Record // fetched, not handed out
	fetched   chan fetched
	reached   int64     // up to where pending goes, or went
	handing   *handover // with the pump
	claims    chan *claim
	claimed   []*claim // waiting until everything below is acknowledged
	ended     chan struct{}
	committed int64
	restUntil time.Time
}

// assignments counts the assignments of this process.
var assignments atomic.Uint64

func newPartition(s *subscription, c committer, a kafkago.PartitionAssignment) *partition {
	return &partition{
		sub: s, number: assignments.Add(1), committer: c, id: a.ID, from: a.Offset,
		log:    s.subscriber.config.logger().With("topic", s.topic, "partition", a.ID, "group", s.subscriber.options.Group),
		window: newWindow[*delivery](max(a.Offset, 0)), fetched: make(chan fetched, 1),
		claims: make(chan *claim), ended: make(chan struct{}), committed: max(a.Offset, 0),
	}
}

// run delivers until owned ends (the partition may go to somebody else: cancel and commit what was acknowledged)
// or the subscription stops (drain, then commit).
func (p *partition) run(owned context.Context) {
	if !p.sign(owned) || !p.pin(owned) {
		close(p.ended)
		return
	}
	p.sub.subscriber.options.OnOwned(owned, p.sub.topic, p.id)
	fetching, stopFetching := context.WithCancel(owned)
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		(&fetcher{partition: p, cursor: p.cursor()}).run(fetching)
	}()
	defer func() {
		stopFetching()
		<-idle
	}()

	if p.deliver(owned) {
		stopFetching()
		p.drain(owned)
	}
	p.sweep()
	p.release()
	p.commit()
	close(p.ended)
	if owned.Err() != nil && p.sub.stop.Err() == nil {
		p.settle()
	}
}

// sign makes the metadata of the commits to come. Without what was there before them they could only overwrite it, so it is waited for.
func (p *partition) sign(owned context.Context) bool {
	if p.sub.subscriber.options.CommitMetadata == nil {
		return true
	}
	ctx, cancel := context.WithCancel(owned)
	defer cancel()
	defer context.AfterFunc(p.sub.stop, cancel)()
	for wait, told := (pause{}), false; ; {
		before, err := p.committer.sign(ctx, p.id)
		if err == nil && before.Offset < p.from {
			err = fmt.Errorf("the commit at %d is gone", p.from)
		}
		if err == nil {
			if before.Offset > max(p.from, 0) { // A commit under way at the join: it counts.
				p.from, p.committed, p.window.done = before.Offset, before.Offset, before.Offset
			}
			return true
		}
		if !told && ctx.Err() == nil {
			told = true
			p.log.WarnContext(ctx, "what is committed cannot be read, the partition waits", "error", err)
		}
		if staleMetadata(err) {
			p.sub.subscriber.link.refresh()
		}
		if !wait.sleep(ctx) {
			return false
		}
	}
}

// pin commits where a group starts that begins at the end of the log. Without it, every rebalance before the
// first acknowledgement would move the start and skip what came in between.
func (p *partition) pin(owned context.Context) bool {
	for wait := (pause{}); p.from == Last; {
		_, end, err := p.sub.subscriber.link.offsets(owned, p.sub.topic, p.id)
		if err == nil {
			err = p.committer.commit(p.id, end)
		}
		if err == nil {
			p.from, p.committed, p.window.done = end, end, end
			return true
		}
		if staleMetadata(err) {
			p.sub.subscriber.link.refresh()
		}
		if p.sub.stop.Err() != nil || !wait.sleep(owned) {
			return false
		}
	}
	return true
}

func (p *partition) cursor() *cursor {
	return &cursor{
		link: p.sub.subscriber.link, topic: p.sub.topic, partition: p.id, next: p.from,
		maxBytes: p.sub.subscriber.options.FetchBytes,
	}
}

// deliver hands out messages; it returns true when the subscription stops and false when the partition is lost.
func (p *partition) deliver(owned context.Context) bool {
	o := p.sub.subscriber.options
	scan := time.NewTicker(min(scanInterval, o.CommitInterval))
	defer scan.Stop()
	commitAt := time.Now()
	var next *handover
	for {
		if next == nil && p.handing == nil {
			next = p.prepare()
		}
		var handovers chan<- *handover
		if next != nil {
			handovers = p.sub.handovers
		}
		var more chan fetched
		if len(p.pending) == 0 {
			more = p.fetched
		}
		var handed <-chan struct{}
		if p.handing != nil {
			handed = p.handing.done
		}
		var acked, nacked <-chan struct{}
		headOffset, head, ok := p.window.head()
		if ok {
			acked, nacked = head.msg.Acked(), head.msg.Nacked()
		}
		select {
		case handovers <- next:
			p.handedOver(next)
			next = nil
		case <-handed:
			p.handing = nil
		case f := <-more:
			p.pending, p.reached = p.keep(f.records), f.next
		case <-acked:
			p.acknowledge(headOffset, head)
			p.sweepHead()
		case <-nacked:
			p.sweep() // what is acknowledged behind it by now stays so
			next = nil
		case c := <-p.claims:
			p.claim(c)
		case now := <-scan.C:
			if p.sweep() {
				next = nil
			}
			if now.Sub(commitAt) >= o.CommitInterval {
				commitAt = now
				p.commit()
			}
		case <-owned.Done():
			p.recall()
			return false
		case <-p.sub.stop.Done():
			p.recall()
			return true
		}
	}
}

// keep gives records memory of their own, when that was asked for.
func (p *partition) keep(records []*Record) []*Record {
	if p.sub.subscriber.options.OwnRecords {
		for i, r := range records {
			own := r.own()
			records[i] = &own
		}
	}
	return records
}

// prepareAgain makes a run of what was put back, once the partition has rested.
func (p *partition) prepareAgain() *handover {
	if time.Now().Before(p.restUntil) {
		return nil
	}
	h := newHandover()
	p.window.waiting(func(offset int64, d *delivery) bool {
		again := new(delivery)
		again.make(p, d.record, headerText(d.record))
		again.offset = offset
		h.deliveries = append(h.deliveries, again)
		return len(h.deliveries) < handoverSize
	})
	return h
}

func (p *partition) acknowledge(offset int64, d *delivery) {
	d.cancel()
	if p.window.ack(offset) {
		p.serveClaims()
	}
}

func (p *partition) putBack(offset int64) {
	for _, d := range p.window.nack(offset) {
		d.cancel()
		p.failClaim(d, ErrLost)
	}
	p.restUntil = time.Now().Add(p.sub.subscriber.options.NackDelay)
}

// sweepHead takes the acknowledgements that are already there at the head of the window.
func (p *partition) sweepHead() {
	for {
		offset, d, ok := p.window.head()
		if !ok {
			return
		}
		select {
		case <-d.msg.Acked():
			p.acknowledge(offset, d)
		default:
			return
		}
	}
}

// sweep takes every answer that is there; true when something was put back.
func (p *partition) sweep() bool {
	var acked []*delivery
	var nacked *delivery
	p.window.flying(func(_ int64, d *delivery) bool {
		// Two selects of one case, which take no lock: of many messages in flight hardly one has an answer.
		select {
		case <-d.msg.Acked():
			acked = append(acked, d)
			return true
		default:
		}
		select {
		case <-d.msg.Nacked():
			if nacked == nil {
				nacked = d
			}
		default:
		}
		return true
	})
	for _, d := range acked {
		p.acknowledge(d.offset, d)
	}
	if nacked != nil {
		p.recall()
		p.putBack(nacked.offset)
	}
	return nacked != nil
}

// drain waits for the answers to what is in flight.
func (p *partition) drain(owned context.Context) {
	deadline := time.NewTimer(p.sub.subscriber.options.DrainTimeout)
	defer deadline.Stop()
	scan := time.NewTicker(scanInterval / 4)
	defer scan.Stop()
	for p.sweep(); p.flying(); p.sweep() {
		select {
		case <-scan.C:
		case c := <-p.claims:
			p.claim(c)
		case <-owned.Done():
			return
		case <-deadline.C:
			p.log.WarnContext(owned, "messages in flight were not settled in time, they will be delivered again")
			return
		}
	}
}

func (p *partition) flying() bool {
	found := false
	p.window.flying(func(int64, *delivery) bool { found = true; return false })
	return found
}

// release cancels what is in flight; its later answers change nothing.
func (p *partition) release() {
	p.window.flying(func(_ int64, d *delivery) bool {
		d.cancel()
		return true
	})
	for _, c := range p.claimed {
		c.reply(ErrLost)
	}
	p.claimed = nil
}

// settle gives the handlers of cancelled messages a moment to end.
func (p *partition) settle() {
	deadline := time.NewTimer(revokeGrace)
	defer deadline.Stop()
	p.window.flying(func(_ int64, d *delivery) bool {
		select {
		case <-d.msg.Acked():
		case <-d.msg.Nacked():
		case <-deadline.C:
			return false
		}
		return true
	})
}

// pass leaves behind what follows the last record and is none. Otherwise whoever compares the group with the log's end would see it
// behind for as long as nothing else is written.
func (p *partition) pass() {
	signed := p.sub.subscriber.options.CommitMetadata != nil // Then a commit says who has claimed the record below it.
	if !signed && p.window.size() == 0 && len(p.pending) == 0 && p.handing == nil && p.reached > p.window.done {
		p.window.done = p.reached
	}
}

// commit commits what is acknowledged, when that is new.
func (p *partition) commit() {
	p.pass()
	if p.window.done <= p.committed {
		return
	}
	if err := p.committer.commit(p.id, p.window.done); err != nil {
		p.log.Debug("commit is tried again", "error", err)
		return
	}
	p.committed = p.window.done
}
