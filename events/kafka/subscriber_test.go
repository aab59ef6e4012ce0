package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	"verbatim.dev/events/kafka"
	"verbatim.dev/events/kafka/kafkatest"
)

// fill publishes messages 0 to n-1 under one key.
func fill(t testing.TB, c kafka.Config, topic string, n int) {
	t.Helper()
	p := publisher(t, c, kafka.PublisherOptions{})
	var batch []*message.Message
	for i := range n {
		batch = append(batch, keyed("k", fmt.Sprint(i), fmt.Sprintf("payload %d", i)))
	}
	if err := p.Publish(topic, batch...); err != nil {
		t.Fatal(err)
	}
}

func take(t testing.TB, messages <-chan *message.Message, n int) []*message.Message {
	t.Helper()
	var all []*message.Message
	for range n {
		all = append(all, receive(t, messages))
	}
	return all
}

func ids(messages []*message.Message) string {
	var all []string
	for _, m := range messages {
		all = append(all, m.UUID)
	}
	return strings.Join(all, " ")
}

func committed(t testing.TB, c kafka.Config, group, topic string) map[int]int64 {
	t.Helper()
	offsets := map[int]int64{}
	for partition, c := range commits(t, c, group, topic) {
		offsets[partition] = c.Offset
	}
	return offsets
}

func commits(t testing.TB, c kafka.Config, group, topic string) map[int]kafka.Commit {
	t.Helper()
	a, err := kafka.NewAdmin(c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	all, err := a.Commits(context.Background(), group, topic)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func silent(t testing.TB, messages <-chan *message.Message) {
	t.Helper()
	select {
	case m := <-messages:
		t.Fatalf("got %s", m.UUID)
	case <-time.After(100 * time.Millisecond):
	}
}

func ended(m *message.Message) bool { return m.Context().Err() != nil }

func TestNackBringsBackTheRestInOrder(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 10)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 5, NackDelay: time.Millisecond})
	messages := subscribe(t, s, topic)
	first := take(t, messages, 5)
	if got := ids(first); got != "0 1 2 3 4" {
		t.Fatalf("got %s", got)
	}
	silent(t, messages) // five are in flight
	first[3].Ack()
	first[1].Nack()
	back := take(t, messages, 3)
	if got := ids(back); got != "1 2 4" {
		t.Errorf("came back: %s; 3 is acknowledged, 0 was before it", got)
	}
	for i, want := range []bool{false, true, true, true, true} {
		if ended(first[i]) != want {
			t.Errorf("context of %d ended: %v", i, !want)
		}
	}
	first[2].Ack() // an answer to what was put back
	first[0].Ack()
	eventually(t, "0 committed", func() bool { return committed(t, b.config(), "g", topic)[0] == 1 })
	for _, m := range back {
		m.Ack()
	}
	for _, m := range take(t, messages, 5) {
		m.Ack()
	}
	eventually(t, "all committed", func() bool { return committed(t, b.config(), "g", topic)[0] == 10 })
}

func TestCommitStopsAtTheFirstUnacknowledged(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 10)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 10, DrainTimeout: time.Millisecond})
	messages := subscribe(t, s, topic)
	for i, m := range take(t, messages, 10) {
		if i != 4 {
			m.Ack()
		}
	}
	eventually(t, "what is below 4", func() bool { return committed(t, b.config(), "g", topic)[0] == 4 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := committed(t, b.config(), "g", topic)[0]; got != 4 {
		t.Errorf("committed %d", got)
	}
	again := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"}), topic)
	if m := receive(t, again); m.UUID != "4" {
		t.Errorf("goes on with %s", m.UUID)
	}
}

func TestCloseCommitsAtOnceAndWaitsForTheRest(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 3)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 3, CommitInterval: time.Hour, DrainTimeout: 20 * time.Second})
	messages := subscribe(t, s, topic)
	all := take(t, messages, 3)
	all[0].Ack()
	closed := make(chan struct{})
	go func() { defer close(closed); _ = s.Close() }()
	<-kafka.Stopping(all[1].Context())
	if ended(all[1]) {
		t.Error("context ended although there is time to finish")
	}
	all[1].Ack()
	all[2].Nack()
	<-closed
	if _, open := <-messages; open {
		t.Error("channel is open")
	}
	if got := committed(t, b.config(), "g", topic)[0]; got != 2 {
		t.Errorf("committed %d", got)
	}
}

func TestLostPartitionIsCancelledAndNeverCommitted(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 2)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	var batch []*message.Message
	for i := range 3 {
		batch = append(batch, keyed(keyFor(0, 2), fmt.Sprintf("a%d", i), "x"), keyed(keyFor(1, 2), fmt.Sprintf("b%d", i), "x"))
	}
	if err := p.Publish(topic, batch...); err != nil {
		t.Fatal(err)
	}
	one := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 3}), topic)
	held := take(t, one, 6)
	for _, m := range held {
		if strings.HasSuffix(m.UUID, "0") {
			m.Ack() // before the loss: counts
		}
	}
	two := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 3}), topic)
	eventually(t, "contexts end", func() bool { return !slices.ContainsFunc(held, func(m *message.Message) bool { return !ended(m) }) })
	for _, m := range held {
		m.Ack() // after the loss: changes nothing
	}
	got := ids(take(t, two, 2))
	if got != "a1 a2" && got != "b1 b2" {
		t.Errorf("the new owner got %s", got)
	}
	for n, offset := range committed(t, b.config(), "g", topic) {
		if offset != 1 {
			t.Errorf("partition %d is committed at %d", n, offset)
		}
	}
	if got := ids(take(t, one, 2)); got != "a1 a2" && got != "b1 b2" {
		t.Errorf("the old owner got %s", got)
	}
}

// signed runs a test without and with SubscriberOptions.CommitMetadata: the commits are two requests.
func signed(t *testing.T, test func(t *testing.T, name string)) {
	for _, name := range []string{"", "somebody"} {
		t.Run("signature="+name, func(t *testing.T) {
			t.Parallel()
			test(t, name)
		})
	}
}

// signature is a SubscriberOptions.CommitMetadata that has nothing but a name.
func signature(name string) func(kafka.Commit) string {
	if name == "" {
		return nil
	}
	return func(kafka.Commit) string { return name }
}

func TestClaim(t *testing.T) {
	t.Parallel()
	signed(t, func(t *testing.T, name string) {
		b := startBroker(t)
		topic := b.topic(t, 1)
		fill(t, b.config(), topic, 4)
		s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 3, CommitInterval: time.Hour, DrainTimeout: time.Millisecond, CommitMetadata: signature(name)})
		messages := subscribe(t, s, topic)
		m := take(t, messages, 3)
		claimed := make(chan error, 1)
		go func() { claimed <- kafka.CommitSync(context.Background(), m[1]) }()
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := kafka.CommitSync(short, m[2]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with 0 not acknowledged: %v", err)
		}
		select {
		case err := <-claimed:
			t.Fatalf("claimed with 0 not acknowledged: %v", err)
		default:
		}
		m[0].Ack()
		if err := <-claimed; err != nil {
			t.Fatal(err)
		}
		if got := commits(t, b.config(), "g", topic)[0]; got != (kafka.Commit{Offset: 2, Metadata: name}) {
			t.Errorf("committed %+v", got)
		}
		if !kafka.Claimed(m[1]) || kafka.Claimed(m[2]) {
			t.Error("Claimed is wrong")
		}
		if ended(m[1]) {
			t.Error("context of the claimed message ended")
		}
		if next := receive(t, messages); next.UUID != "3" {
			t.Errorf("then came %s", next.UUID)
		}
		m[1].Nack() // changes nothing
		eventually(t, "context ends with the answer", func() bool { return ended(m[1]) })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := kafka.CommitSync(t.Context(), m[2]); !errors.Is(err, kafka.ErrLost) {
			t.Errorf("after Close: %v", err)
		}
		again := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"}), topic)
		if m := receive(t, again); m.UUID != "2" {
			t.Errorf("goes on with %s", m.UUID)
		}
		if err := kafka.CommitSync(t.Context(), message.NewMessage("x", nil)); err == nil {
			t.Error("claimed a message from nowhere")
		}
	})
}

func TestClaimFailsWithTheBroker(t *testing.T) {
	t.Parallel()
	signed(t, func(t *testing.T, name string) {
		b := startBroker(t)
		topic := b.topic(t, 1)
		fill(t, b.config(), topic, 1)
		messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: signature(name)}), topic)
		m := receive(t, messages)
		b.stop()
		if err := kafka.CommitSync(t.Context(), m); err == nil {
			t.Fatal("claimed without a broker")
		}
		if kafka.Claimed(m) {
			t.Error("counts as claimed")
		}
		b.start()
		m = receive(t, messages)
		if err := kafka.CommitSync(t.Context(), m); err != nil {
			t.Fatalf("after the restart: %v", err)
		}
		if got := committed(t, b.config(), "g", topic)[0]; got != 1 {
			t.Errorf("committed %d", got)
		}
	})
}

func TestClaimIsRefusedWhenAnotherOwnsThePartition(t *testing.T) {
	t.Parallel()
	signed(t, func(t *testing.T, name string) {
		b := startBroker(t)
		topic := b.topic(t, 1)
		fill(t, b.config(), topic, 1)
		messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: signature(name)}), topic)
		m := receive(t, messages)
		// The group has moved on, and this member does not know it yet.
		b.cluster.ControlKey(int16(kmsg.OffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
			b.cluster.KeepControl()
			req := r.(*kmsg.OffsetCommitRequest)
			res := req.ResponseKind().(*kmsg.OffsetCommitResponse)
			for _, t := range req.Topics {
				rt := kmsg.NewOffsetCommitResponseTopic()
				rt.Topic = t.Topic
				for _, p := range t.Partitions {
					rp := kmsg.NewOffsetCommitResponseTopicPartition()
					rp.Partition, rp.ErrorCode = p.Partition, 22 // ILLEGAL_GENERATION
					rt.Partitions = append(rt.Partitions, rp)
				}
				res.Topics = append(res.Topics, rt)
			}
			return res, nil, true
		})
		if err := kafka.CommitSync(t.Context(), m); err == nil || kafka.Claimed(m) {
			t.Errorf("claimed: %v", err)
		}
	})
}

func TestBrokerRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 3)
	const keys, each = 6, 200
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	var writers sync.WaitGroup
	for k := range keys {
		writers.Go(func() {
			for i := range each {
				if err := p.Publish(topic, keyed(fmt.Sprintf("key-%d", k), fmt.Sprintf("%d/%d", k, i), "x")); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
			}
		})
	}
	messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 10}), topic)
	next := map[string]int{}
	seen, restarts := 0, 0
	for seen < keys*each {
		if restarts < 2 && seen >= 100+500*restarts {
			restarts++
			b.restart()
		}
		m := receive(t, messages)
		k, n := "", 0
		if _, err := fmt.Sscanf(strings.Replace(m.UUID, "/", " ", 1), "%s %d", &k, &n); err != nil {
			t.Fatal(err)
		}
		switch {
		case n == next[k]:
			next[k]++
			seen++
		case n > next[k]:
			t.Fatalf("key %s: %d came before %d", k, n, next[k])
		}
		m.Ack()
	}
	writers.Wait()
}

// Not parallel: the others would be measured too.
func TestFirstMessageOfAFreshGroupIsFast(t *testing.T) {
	b := startBroker(t)
	topic := b.topic(t, 12)
	fill(t, b.config(), topic, 1)
	fastest := time.Hour
	for i := range 3 {
		fastest = min(fastest, kafkatest.Fresh(t, b.config(), topic, fmt.Sprintf("g-%d", i)))
	}
	// The fastest, because the others say how busy this machine is; the waits this is about are 3 s and 5 s.
	if fastest > 2500*time.Millisecond {
		t.Errorf("took at least %s", fastest)
	}
}

func TestPrefixKeepsInstallationsApart(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	mine, other := b.config(), b.config()
	mine.TopicPrefix, other.TopicPrefix = "mine.", "other."
	for _, c := range []kafka.Config{mine, other} {
		if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: "t", Partitions: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, mine, "t", 1)
	messages := subscribe(t, subscriber(t, mine, kafka.SubscriberOptions{Group: "g"}), "t")
	none := subscribe(t, subscriber(t, other, kafka.SubscriberOptions{Group: "g"}), "t")
	m := receive(t, messages)
	if at := position(t, m); at.Topic != "t" || at.Offset != 0 || string(at.Key) != "k" || at.HighWatermark != 1 || time.Since(at.Time) > time.Minute {
		t.Errorf("position %+v", at)
	}
	m.Ack()
	silent(t, none)
	if got := records(t, b.config(), "mine.t", 0); len(got) != 1 {
		t.Errorf("on the wire are %d", len(got))
	}
}

func TestFromEndSkipsNothingAfterItsStart(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 5)
	options := kafka.SubscriberOptions{Group: "g", FromEnd: true}
	s := subscriber(t, b.config(), options)
	_ = subscribe(t, s, topic)
	eventually(t, "start is committed", func() bool { return committed(t, b.config(), "g", topic)[0] == 5 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, b.config(), topic, 1)
	if m := receive(t, subscribe(t, subscriber(t, b.config(), options), topic)); position(t, m).Offset != 5 {
		t.Errorf("starts at %d", position(t, m).Offset)
	}
}
