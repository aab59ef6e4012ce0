package kafka_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"verbatim.dev/services/embedded/kafka"
)

// A process that is killed while it waits to join keeps no partitions for ever.
func TestAMemberThatDiesWhileItJoinsIsTakenOut(t *testing.T) {
	t.Parallel()
	s, err := kafka.Start(t.Context(), kafka.Config{Addr: "127.0.0.1:0", DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	const session = 6 * time.Second // The least there may be.
	owned := make(chan int, 100)
	note := func(_ context.Context, _ *kgo.Client, changed map[string][]int32) { owned <- len(changed["t"]) }
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Addr()), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()),
		kgo.SessionTimeout(session), kgo.RebalanceTimeout(30*time.Second), kgo.HeartbeatInterval(200*time.Millisecond), kgo.OnPartitionsAssigned(note))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topic := kmsg.NewPtrCreateTopicsRequest()
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = "t", 4, 1
	topic.Topics = append(topic.Topics, one)
	if _, err := topic.RequestWith(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	next := func(want int) {
		t.Helper()
		select {
		case n := <-owned:
			if n != want {
				t.Fatalf("%d partitions, want %d", n, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no assignment of %d partitions", want)
		}
	}
	next(4)
	joinAndDie(t, s.Addr(), session)
	next(2) // The dead one counts as a member …
	next(4) // … until it was silent for too long.
}

// joinAndDie asks to join a group and closes the connection before the answer.
func joinAndDie(t *testing.T, addr string, session time.Duration) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{"t"}
	r := kmsg.NewPtrJoinGroupRequest()
	r.Version = 1 // Before clients had to ask for an id first.
	r.Group, r.ProtocolType = "g", "consumer"
	r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = int32(session.Milliseconds()), 2000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", meta.AppendTo(nil)
	r.Protocols = append(r.Protocols, p)
	if _, err := c.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("dead")).AppendRequest(nil, r, 1)); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond) // The broker has it; the answer waits for the other member.
}
