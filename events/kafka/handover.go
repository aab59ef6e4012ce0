package kafka

import "github.com/ThreeDotsLabs/watermill/message"

// handoverSize is how many messages of one partition are handed over at once. Going through the deliverer's long
// select for every message would cost more than the message.
const handoverSize = 256

// handover is a run of messages of one partition on their way to the subscription's channel, which is not
// buffered: a message is either sent, and then somebody has it, or it is not.
type handover struct {
	deliveries []*delivery
	revoke     chan struct{} // closed by the partition: send no more
	done       chan struct{} // closed by the pump: sent is final
	sent       int
}

func newHandover() *handover {
	return &handover{revoke: make(chan struct{}), done: make(chan struct{})}
}

func (h *handover) send(out chan<- *message.Message) {
	defer close(h.done)
	for _, d := range h.deliveries {
		select {
		case out <- d.msg:
			h.sent++
		case <-h.revoke:
			return
		}
	}
}

// pump sends what the partitions hand over, until there are no partitions any more.
func (s *subscription) pump() {
	for h := range s.handovers {
		h.send(s.out)
	}
}

// prepare makes the next run to hand over: what was put back, else new messages as far as the window has room;
// nil when there is nothing.
func (p *partition) prepare() *handover {
	if _, _, ok := p.window.next(); ok {
		return p.prepareAgain()
	}
	n := min(len(p.pending), p.sub.subscriber.options.MaxInFlight-p.window.size(), handoverSize)
	if limit := p.sub.subscriber.options.MaxInFlightBytes; limit > 0 {
		n = p.fitting(n, limit)
	}
	if n <= 0 {
		return nil
	}
	h := newHandover()
	h.deliveries = make([]*delivery, n)
	if p.sub.subscriber.options.OwnRecords {
		for i, r := range p.pending[:n] { // Each by itself, so that one that is in flight for long keeps no others.
			h.deliveries[i] = new(delivery)
			h.deliveries[i].make(p, r, headerText(r))
		}
		return h
	}
	slab, text := make([]delivery, n), headerText(p.pending[:n]...)
	for i, r := range p.pending[:n] {
		h.deliveries[i] = &slab[i]
		text = slab[i].make(p, r, text)
	}
	return h
}

// fitting is how many of the next n messages may be handed out when so many bytes may be in flight. When none is, one may.
func (p *partition) fitting(n, limit int) int {
	bytes := 0
	for i := range p.window.slots {
		if d := p.window.slots[i].item; d != nil {
			bytes += len(d.record.Key) + len(d.record.Value)
		}
	}
	for i, r := range p.pending[:max(n, 0)] {
		if bytes > 0 && bytes+len(r.Key)+len(r.Value) > limit {
			return i
		}
		bytes += len(r.Key) + len(r.Value)
	}
	return n
}

// handedOver notes that the pump has taken a run.
func (p *partition) handedOver(h *handover) {
	p.handing = h
	for _, d := range h.deliveries {
		if len(p.pending) > 0 && d.record == p.pending[0] {
			p.pending[0] = nil
			p.pending = p.pending[1:]
			p.window.add(d.offset, d)
			continue
		}
		p.window.again(d.offset, d)
	}
}

// recall takes back what the pump has not sent yet; it is handed over again later, if the partition stays. Whatever is
// in flight afterwards, somebody has.
func (p *partition) recall() {
	h := p.handing
	if h == nil {
		return
	}
	p.handing = nil
	close(h.revoke)
	<-h.done
	if h.sent < len(h.deliveries) {
		// Runs are in order of offset, and one is on its way at a time: nothing behind these was sent.
		p.window.nack(h.deliveries[h.sent].offset)
	}
}
