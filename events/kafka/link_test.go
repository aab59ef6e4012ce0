package kafka_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"verbatim.dev/events/kafka"
)

// TestMetadataIsAskedForTopicsInUse: kafka-go asks for every topic of the cluster, every few seconds and before anything
// else, unless told which ones. With thousands of topics that alone keeps a client busy.
func TestMetadataIsAskedForTopicsInUse(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	b.topic(t, 1) // of somebody else
	first, second := b.topic(t, 2), b.topic(t, 2)
	var mu sync.Mutex
	asked := map[string]bool{}
	b.cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		r := req.(*kmsg.MetadataRequest)
		if r.Topics == nil {
			asked["all"] = true
		}
		for _, topic := range r.Topics {
			asked[*topic.Topic] = true
		}
		return nil, nil, false
	})

	p := publisher(t, b.config(), kafka.PublisherOptions{})
	for _, topic := range []string{first, second, first} { // The second one is new to the publisher's connections.
		if err := p.Publish(topic, keyed("k", topic, "x")); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"}), first)).Ack()
	r, err := kafka.NewPartitionReader(b.config(), second, kafka.PartitionFor([]byte("k"), 2), kafka.First)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := kafka.CheckTopics(t.Context(), b.config(), []kafka.Topic{{Name: first, Partitions: 2}}); err != nil {
		t.Error(err)
	}

	mu.Lock()
	defer mu.Unlock()
	for topic := range asked {
		if !slices.Contains([]string{first, second}, topic) {
			t.Errorf("metadata of %s was asked for", topic)
		}
	}
	if len(asked) < 2 {
		t.Errorf("asked for %v", asked)
	}
}
