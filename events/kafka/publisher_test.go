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
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"verbatim.dev/events/kafka"
)

// records reads a whole partition.
func records(t testing.TB, c kafka.Config, topic string, partition int) []kafka.Record {
	t.Helper()
	a, err := kafka.NewAdmin(c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	end, err := a.EndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	r, err := kafka.NewPartitionReader(c, topic, partition, kafka.First)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []kafka.Record
	for end[partition] > 0 && (len(all) == 0 || all[len(all)-1].Offset < end[partition]-1) {
		record, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, record)
	}
	return all
}

func TestKeysKeepTheirPlaceAndOrder(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 4)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			for i := range 20 {
				var batch []*message.Message
				for j := range 5 {
					batch = append(batch, keyed(fmt.Sprintf("key-%d", k), fmt.Sprintf("%d/%d", k, i*5+j), "x"))
				}
				if err := p.Publish(topic, batch...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := map[string]int{}
	for n := range 4 {
		for _, r := range records(t, b.config(), topic, n) {
			key := string(r.Key)
			if want := kafka.PartitionFor(r.Key, 4); want != n {
				t.Errorf("%s is in partition %d, belongs to %d", key, n, want)
			}
			if got, want := string(r.Headers[0].Value), fmt.Sprintf("%s/%d", strings.TrimPrefix(key, "key-"), next[key]); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			next[key]++
		}
	}
	for k := range 8 {
		if n := next[fmt.Sprintf("key-%d", k)]; n != 100 {
			t.Errorf("key %d has %d messages", k, n)
		}
	}
}

func TestPartitionForIsJavas(t *testing.T) {
	t.Parallel()
	other := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "key")
		n := rapid.IntRange(1, 50).Draw(t, "partitions")
		if got, want := kafka.PartitionFor(key, n), other.Partition(&kgo.Record{Key: key}, n); got != want {
			t.Fatalf("%d, another client has %d", got, want)
		}
	})
}

func TestErrorNamesWhatDidNotGetThrough(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 2)
	p := publisher(t, b.config(), kafka.PublisherOptions{Linger: -1})
	even, odd := keyFor(0, 2), keyFor(1, 2)
	// The broker refuses what goes to partition 1 from now on.
	b.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		req := r.(*kmsg.ProduceRequest)
		if req.Topics[0].Partitions[0].Partition != 1 {
			return nil, nil, false
		}
		return produceError(req, kerr.TopicAuthorizationFailed.Code), nil, true
	})
	err := p.Publish(topic, keyed(even, "a", "x"), keyed(odd, "b", "x"), keyed(even, "c", "x"), keyed(odd, "d", "x"))
	var failed *kafka.PublishError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v", err)
	}
	var names []string
	for _, f := range failed.Failed {
		names = append(names, f.UUID)
	}
	if failed.Topic != topic || !slices.Equal(names, []string{"b", "d"}) {
		t.Errorf("failed are %v of %s", names, failed.Topic)
	}
	if got := len(records(t, b.config(), topic, 0)); got != 2 {
		t.Errorf("%d messages got through", got)
	}
}

func produceError(req *kmsg.ProduceRequest, code int16) kmsg.Response {
	res := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		res.Topics = append(res.Topics, rt)
	}
	return res
}

// keyFor finds a key of a partition.
func keyFor(partition, partitions int) string {
	for i := 0; ; i++ {
		if k := fmt.Sprintf("k%d", i); kafka.PartitionFor([]byte(k), partitions) == partition {
			return k
		}
	}
}

func TestOrderIsKeptWhenABatchIsWrittenAgain(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p := publisher(t, b.config(), kafka.PublisherOptions{Linger: -1, BatchMessages: 3})
	n := 0
	b.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		if n++; n%3 == 0 {
			return nil, nil, false
		}
		code := kerr.NotEnoughReplicas.Code
		if n%2 == 0 {
			code = kerr.UnknownServerError.Code
		}
		return produceError(r.(*kmsg.ProduceRequest), code), nil, true
	})
	var batch []*message.Message
	for i := range 30 {
		batch = append(batch, keyed("k", fmt.Sprint(i), "x"))
	}
	if err := p.Publish(topic, batch...); err != nil {
		t.Fatal(err)
	}
	for i, r := range records(t, b.config(), topic, 0) {
		if got := string(r.Headers[0].Value); got != fmt.Sprint(i) {
			t.Fatalf("at %d is %s", i, got)
		}
	}
}

func TestNothingIsWrittenBehindAFailure(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p := publisher(t, b.config(), kafka.PublisherOptions{Linger: -1, BatchMessages: 2})
	n := 0
	b.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		if n++; n != 2 {
			return nil, nil, false
		}
		return produceError(r.(*kmsg.ProduceRequest), kerr.InvalidRecord.Code), nil, true
	})
	var batch []*message.Message
	for i := range 6 {
		batch = append(batch, keyed("k", fmt.Sprint(i), "x"))
	}
	var failed *kafka.PublishError
	if err := p.Publish(topic, batch...); !errors.As(err, &failed) {
		t.Fatalf("got %v", err)
	}
	if len(failed.Failed) != 4 || failed.Failed[0].UUID != "2" || len(records(t, b.config(), topic, 0)) != 2 {
		t.Errorf("failed %v, written %d", failed.Failed, len(records(t, b.config(), topic, 0)))
	}
	if err := p.Publish(topic, batch[2:]...); err != nil {
		t.Fatal(err)
	}
	if got := len(records(t, b.config(), topic, 0)); got != 6 {
		t.Errorf("%d after sending the rest again", got)
	}
}

func TestRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p := publisher(t, b.config(), kafka.PublisherOptions{MaxMessageBytes: 1000})
	nokey := message.NewMessage("nokey", []byte("x"))
	for name, c := range map[string]struct {
		msg  *message.Message
		is   error
		text string
	}{
		"too large": {keyed("k", "big", strings.Repeat("x", 1001)), kafka.ErrTooLarge, "the limit is 1000"},
		"no key":    {nokey, nil, "has no key"},
	} {
		err := p.Publish(topic, keyed("k", "fine", "x"), c.msg)
		var failed *kafka.PublishError
		if !errors.As(err, &failed) || len(failed.Failed) != 2 || !strings.Contains(err.Error(), c.text) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := len(records(t, b.config(), topic, 0)); got != 0 {
		t.Errorf("%d messages written", got)
	}
	open := publisher(t, b.config(), kafka.PublisherOptions{AllowNoKey: true})
	if err := open.Publish(topic, nokey); err != nil {
		t.Errorf("without a key, which is allowed here: %v", err)
	}
}

func TestTooLargeForTheBroker(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	name := fmt.Sprintf("topic-%d", topics.next())
	if err := kafka.EnsureTopics(t.Context(), b.config(), []kafka.Topic{{Name: name, Partitions: 1, Config: map[string]string{"max.message.bytes": "4096"}}}); err != nil {
		t.Fatal(err)
	}
	p := publisher(t, b.config(), kafka.PublisherOptions{Compression: kafka.CompressionNone})
	err := p.Publish(name, keyed("k", "big", strings.Repeat("x", 5000)))
	if !errors.Is(err, kafka.ErrTooLarge) {
		t.Errorf("one message: %v", err)
	}
	var batch []*message.Message
	for i := range 20 {
		batch = append(batch, keyed("k", fmt.Sprint(i), strings.Repeat("x", 1000)))
	}
	if err := p.Publish(name, batch...); err != nil {
		t.Errorf("a batch that must be split: %v", err)
	}
	for i, r := range records(t, b.config(), name, 0) {
		if got := string(r.Headers[0].Value); got != fmt.Sprint(i) {
			t.Fatalf("at %d is %s", i, got)
		}
	}
}

func TestPublishWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	if err := p.Publish(topic, keyed("k", "before", "x")); err != nil {
		t.Fatal(err)
	}
	b.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := p.PublishContext(ctx, topic, keyed("k", "maybe", "x"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the broker away: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Publish(topic, keyed("k", "after", "x")) }()
	b.start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range records(t, b.config(), topic, 0) {
		ids = append(ids, string(r.Headers[0].Value))
	}
	want := []string{"before", "after"}
	if errors.Is(err, kafka.ErrUnknownOutcome) && len(ids) == 3 {
		want = []string{"before", "maybe", "after"} // it was on its way when waiting for it ended
	}
	if !slices.Equal(ids, want) {
		t.Errorf("written: %v", ids)
	}
}

func TestCloseFlushesAndThenRefuses(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p := publisher(t, b.config(), kafka.PublisherOptions{Linger: time.Hour})
	done := make(chan error, 1)
	go func() { done <- p.Publish(topic, keyed("k", "a", "x")) }()
	select {
	case err := <-done:
		t.Fatalf("did not linger: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(topic, keyed("k", "b", "x")); !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if got := len(records(t, b.config(), topic, 0)); got != 1 {
		t.Errorf("%d messages", got)
	}
}

func TestCloseGivesUpOnABrokerThatIsAway(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	p, err := kafka.NewPublisher(b.config(), kafka.PublisherOptions{FlushTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(topic, keyed("k", "a", "x")); err != nil {
		t.Fatal(err)
	}
	b.stop()
	done := make(chan error, 1)
	go func() { done <- p.Publish(topic, keyed("k", "b", "x")) }()
	select {
	case err := <-done:
		t.Fatalf("with the broker away: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := p.Close(); err == nil {
		t.Error("Close says nothing about what it left")
	}
	if err := <-done; !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestUnknownTopicAndBrokerAreClear(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	if err := p.Publish("nowhere", keyed("k", "a", "x")); !errors.Is(err, kafka.ErrUnknownTopic) {
		t.Errorf("publish: %v", err)
	}
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"})
	if _, err := s.Subscribe(t.Context(), "nowhere"); !errors.Is(err, kafka.ErrUnknownTopic) {
		t.Errorf("subscribe: %v", err)
	}
}
