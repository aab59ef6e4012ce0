//go:build benchprojector

package replay_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/wiring"
)

func TestBenchLogToRow(t *testing.T) {
	for _, h := range shapes() {
		t.Run(h.name, func(t *testing.T) {
			b := newBench(t)
			facts := b.fill(h, 0, h.executions, false)
			bare := cost(func() { b.readOnly(facts) })
			before := b.inserted()
			took := cost(func() {
				service := wiring.Projector(b.base, b.dsn, 2000)
				must(t, service.Start(t.Context()))
				b.await(facts)
				must(t, service.Stop(context.Background()))
			})
			rate := func(s spent) string {
				return fmt.Sprintf("%8.0f events/s %6.1f MB/s %5.1f µs of CPU each", float64(facts)/s.wall.Seconds(), float64(facts*h.chunkBytes)/1e6/s.wall.Seconds(), s.cpu.Seconds()*1e6/float64(facts))
			}
			fmt.Printf("log to row   %-12s %s   a consumer that only reads %s   ratio %.2f   rows written per execution %.1f   heap %d MiB\n",
				h.name, rate(took), rate(bare), bare.wall.Seconds()/took.wall.Seconds(), float64(b.inserted()-before)/float64(h.executions), heap())
		})
	}
}

// inserted is the number of rows written so far, versions of one execution counted each.
func (b *bench) inserted() uint64 {
	db := b.db()
	defer db.Close()
	var n uint64
	must(b.t, db.QueryRowContext(b.t.Context(), "SELECT sum(value) FROM system.events WHERE event = 'InsertedRows'").Scan(&n))
	return n
}

// readOnly gets every message and acknowledges it.
func (b *bench) readOnly(facts int) {
	s, err := kafka.NewSubscriber(b.base.Kafka, kafka.SubscriberOptions{Group: "bare", MaxInFlight: 20_000})
	must(b.t, err)
	defer s.Close()
	messages, err := s.Subscribe(b.t.Context(), events.TopicExecutions)
	must(b.t, err)
	for range facts {
		(<-messages).Ack()
	}
}

// await returns when every row is stored: the projector has committed everything.
func (b *bench) await(facts int) {
	admin, err := kafka.NewAdmin(b.base.Kafka)
	must(b.t, err)
	defer admin.Close()
	for {
		offsets, err := admin.CommittedOffsets(b.t.Context(), "projector", events.TopicExecutions)
		must(b.t, err)
		done := int64(0)
		for _, n := range offsets {
			done += n
		}
		if done >= int64(facts) {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}
