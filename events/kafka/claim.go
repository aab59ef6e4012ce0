package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// claim is a CommitSync under way.
type claim struct {
	delivery *delivery
	ctx      context.Context
	done     chan error
}

func (c *claim) reply(err error) { c.done <- err }

// CommitSync commits the message's offset, and with it everything below, and reports failure. Call it
// before work that must not be done twice: nil means that this message will not be delivered again,
// to anybody, so a crash after it skips the work and a crash before it repeats the delivery. While
// messages below are not acknowledged it waits. After it the message is acknowledged: a later Ack or
// Nack changes nothing, the next message may come, and the message's context outlives the loss of the partition.
//
// On error the message is still in flight and must be settled. ErrLost: the message belongs to somebody
// else by now. Otherwise the commit may have happened or not; the work must not start, and a Nack
// brings the message back as long as the partition stays.
func CommitSync(ctx context.Context, msg *message.Message) error {
	d, ok := msg.Context().Value(deliveryKey{}).(*delivery)
	if !ok {
		return errors.New("commit: message does not come from this package's Subscriber")
	}
	c := &claim{delivery: d, ctx: ctx, done: make(chan error, 1)}
	select {
	case d.partition.claims <- c:
	case <-d.partition.ended:
		return fmt.Errorf("commit: %w", ErrLost)
	case <-ctx.Done():
		return fmt.Errorf("commit: %w", context.Cause(ctx))
	}
	select {
	case err := <-c.done:
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	case <-d.partition.ended:
		select {
		case err := <-c.done:
			if err == nil {
				return nil
			}
		default:
		}
		return fmt.Errorf("commit: %w", ErrLost)
	case <-ctx.Done():
		return fmt.Errorf("commit: %w", context.Cause(ctx))
	}
}

// Claimed reports whether CommitSync succeeded for the message: nobody will get it again.
func Claimed(msg *message.Message) bool {
	d, ok := msg.Context().Value(deliveryKey{}).(*delivery)
	return ok && d.claimed.Load()
}

// claim takes a CommitSync in: it is served now or when everything below is acknowledged.
func (p *partition) claim(c *claim) {
	s := p.window.find(c.delivery.offset)
	if s == nil || s.state != inFlight || s.item != c.delivery {
		c.reply(ErrLost)
		return
	}
	p.claimed = append(p.claimed, c)
	p.sweepHead()
	p.serveClaims()
}

// serveClaims commits for as long as the head of the window is claimed.
func (p *partition) serveClaims() {
	for {
		offset, d, ok := p.window.head()
		if !ok {
			return
		}
		c := p.takeClaim(d)
		if c == nil {
			return
		}
		if c.ctx.Err() != nil {
			c.reply(context.Cause(c.ctx))
			continue
		}
		if err := p.committer.commit(p.id, offset+1); err != nil {
			c.reply(err)
			continue
		}
		p.committed = offset + 1
		p.window.ack(offset)
		d.claimed.Store(true)
		d.outlive()
		c.reply(nil)
	}
}

// outlive lets the context of a claimed message live until the message is settled.
func (d *delivery) outlive() {
	go func() {
		select {
		case <-d.msg.Acked():
		case <-d.msg.Nacked():
		case <-d.partition.sub.messages.Done():
		}
		d.cancel()
	}()
}

func (p *partition) takeClaim(d *delivery) *claim {
	for i, c := range p.claimed {
		if c.delivery == d {
			p.claimed = append(p.claimed[:i], p.claimed[i+1:]...)
			return c
		}
	}
	return nil
}

func (p *partition) failClaim(d *delivery, err error) {
	if c := p.takeClaim(d); c != nil {
		c.reply(err)
	}
}
