package kafka_test

import (
	"context"
	"sync"
	"testing"

	"verbatim.dev/events/kafka"
)

// Who is told of a partition has it until the context ends, and nobody else has it meanwhile.
func TestOwned(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 2)
	var mu sync.Mutex
	owned := map[string]map[int]context.Context{}
	member := func(name string) kafka.SubscriberOptions {
		return kafka.SubscriberOptions{Group: "g", OnOwned: func(ctx context.Context, _ string, partition int) {
			mu.Lock()
			defer mu.Unlock()
			if owned[name] == nil {
				owned[name] = map[int]context.Context{}
			}
			owned[name][partition] = ctx
		}}
	}
	has := func(name string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, ctx := range owned[name] {
			if ctx.Err() == nil {
				n++
			}
		}
		return n
	}
	first := subscriber(t, b.config(), member("first"))
	subscribe(t, first, topic)
	eventually(t, "the first has both", func() bool { return has("first") == 2 })
	second := subscriber(t, b.config(), member("second"))
	subscribe(t, second, topic)
	eventually(t, "each has one", func() bool { return has("first") == 1 && has("second") == 1 })
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if has("second") != 0 {
		t.Error("who has left still has a partition")
	}
	eventually(t, "the first has both again", func() bool { return has("first") == 2 })
}

// A member is taken out of its group by its name. It is alive here, so it notices, and comes back under another one; for a second time there
// is nobody to take out.
func TestLeaveForAnother(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	names := make(chan string, 10)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", OnJoined: func(of, member string) {
		if of == topic {
			names <- member
		}
	}})
	subscribe(t, s, topic)
	admin, err := kafka.NewAdmin(b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	first := <-names
	for range 2 {
		if err := admin.Leave(t.Context(), "g", topic, first); err != nil {
			t.Fatal(err)
		}
	}
	if second := <-names; second == first || second == "" {
		t.Errorf("it is %q, and was %q", second, first)
	}
}
