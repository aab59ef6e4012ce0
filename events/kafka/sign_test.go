package kafka_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"verbatim.dev/events/kafka"
)

// signer gives metadata as somebody who adds a name to what was there, and remembers what that was.
type signer struct {
	name string
	mu   sync.Mutex
	seen []kafka.Commit
}

func (s *signer) sign(before kafka.Commit) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, before)
	return before.Metadata + fmt.Sprintf("%s@%d ", s.name, before.Offset)
}

func (s *signer) saw(t *testing.T, want ...kafka.Commit) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.seen, want) {
		t.Errorf("%s saw %+v, want %+v", s.name, s.seen, want)
	}
}

// Who is assigned a partition can carry over what those before said.
func TestCommitMetadataIsCarriedOver(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 5)
	want := []kafka.Commit{{}, {Offset: 2, Metadata: "a@0 "}, {Offset: 3, Metadata: "a@0 b@2 "}}
	for i, name := range []string{"a", "b", "c"} {
		who := &signer{name: name}
		s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: who.sign})
		messages := subscribe(t, s, topic)
		for range max(1, 2-i) {
			m := receive(t, messages)
			if err := kafka.CommitSync(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			m.Ack()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		who.saw(t, want[i])
	}
	if got := commits(t, b.config(), "g", topic)[0]; got != (kafka.Commit{Offset: 4, Metadata: "a@0 b@2 c@3 "}) {
		t.Errorf("committed %+v", got)
	}
}

// A member that has a partition again is asked again: others may have had it meanwhile.
func TestCommitMetadataIsAskedForEachAssignment(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 2)
	who, member := &signer{name: "a"}, make(chan string, 10)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{
		Group: "g", CommitMetadata: who.sign, OnJoined: func(_, m string) { member <- m },
	})
	messages := subscribe(t, s, topic)
	if err := kafka.CommitSync(t.Context(), receive(t, messages)); err != nil {
		t.Fatal(err)
	}
	admin, err := kafka.NewAdmin(b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.Leave(t.Context(), "g", topic, <-member); err != nil {
		t.Fatal(err)
	}
	<-member
	eventually(t, "asked again", func() bool {
		who.mu.Lock()
		defer who.mu.Unlock()
		return len(who.seen) == 2
	})
	who.saw(t, kafka.Commit{}, kafka.Commit{Offset: 1, Metadata: "a@0 "})
}

// fetches answers requests for what is committed, those of the join or those for the metadata, with an error for as long as it says so.
func (b *broker) fetches(join bool, code int16) (failing *atomic.Bool, failed chan struct{}) {
	failing, failed = &atomic.Bool{}, make(chan struct{}, 1000)
	failing.Store(true)
	b.cluster.ControlKey(int16(kmsg.OffsetFetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		req := r.(*kmsg.OffsetFetchRequest)
		if !failing.Load() || (req.Version == 1) != join {
			return nil, nil, false
		}
		res := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, topic := range req.Topics {
			rt := kmsg.NewOffsetFetchResponseTopic()
			rt.Topic = topic.Topic
			for _, p := range topic.Partitions {
				rp := kmsg.NewOffsetFetchResponseTopicPartition()
				rp.Partition, rp.Offset, rp.ErrorCode = p, -1, code
				rt.Partitions = append(rt.Partitions, rp)
			}
			res.Topics = append(res.Topics, rt)
		}
		failed <- struct{}{}
		return res, nil, true
	})
	return failing, failed
}

const loading = 14 // COORDINATOR_LOAD_IN_PROGRESS

// While what was committed cannot be read nothing comes and nothing is committed, and Close does not wait for it.
func TestCommitMetadataIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, closing := range []bool{false, true} {
		t.Run(fmt.Sprintf("closing=%t", closing), func(t *testing.T) {
			t.Parallel()
			b := startBroker(t)
			topic := b.topic(t, 1)
			fill(t, b.config(), topic, 2)
			former := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: (&signer{name: "a"}).sign})
			if err := kafka.CommitSync(t.Context(), receive(t, subscribe(t, former, topic))); err != nil {
				t.Fatal(err)
			}
			if err := former.Close(); err != nil {
				t.Fatal(err)
			}
			failing, failed := b.fetches(false, loading)
			who := &signer{name: "b"}
			s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: who.sign})
			messages := subscribe(t, s, topic)
			for range 3 {
				<-failed
			}
			select {
			case m := <-messages:
				t.Fatalf("%s came", m.UUID)
			default:
			}
			if closing {
				began := time.Now()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("Close took %s", took)
				}
				failing.Store(false)
				who.saw(t)
				if got := commits(t, b.config(), "g", topic)[0]; got != (kafka.Commit{Offset: 1, Metadata: "a@0 "}) {
					t.Errorf("committed %+v", got)
				}
				return
			}
			failing.Store(false)
			if m := receive(t, messages); m.UUID != "1" {
				t.Errorf("%s came", m.UUID)
			}
			who.saw(t, kafka.Commit{Offset: 1, Metadata: "a@0 "})
		})
	}
}

// What a former owner committed counts also when the join did not see it: its record does not come again.
func TestCommitUnderWayAtTheJoin(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 2)
	former := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: (&signer{name: "a"}).sign})
	if err := kafka.CommitSync(t.Context(), receive(t, subscribe(t, former, topic))); err != nil {
		t.Fatal(err)
	}
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	_, failed := b.fetches(true, 0)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: (&signer{name: "b"}).sign})
	messages := subscribe(t, s, topic)
	<-failed
	m := receive(t, messages)
	if m.UUID != "1" {
		t.Fatalf("%s came", m.UUID)
	}
	if err := kafka.CommitSync(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := commits(t, b.config(), "g", topic)[0]; got != (kafka.Commit{Offset: 2, Metadata: "a@0 b@1 "}) {
		t.Errorf("committed %+v", got)
	}
}

// Metadata that Kafka would not take is refused before anything is done.
func TestCommitMetadataTooLong(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 1)
	var long atomic.Bool
	long.Store(true)
	asked := make(chan struct{}, 1000)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", CommitMetadata: func(kafka.Commit) string {
		asked <- struct{}{}
		if long.Load() {
			return strings.Repeat("x", 4097)
		}
		return strings.Repeat("x", 4096)
	}})
	messages := subscribe(t, s, topic)
	for range 2 {
		<-asked
	}
	select {
	case m := <-messages:
		t.Fatalf("%s came", m.UUID)
	default:
	}
	long.Store(false)
	if err := kafka.CommitSync(context.Background(), receive(t, messages)); err != nil {
		t.Fatal(err)
	}
}
