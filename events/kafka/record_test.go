package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"verbatim.dev/events/kafka"
)

// foreign is a client that nobody here wrote.
func foreign(t testing.TB, c kafka.Config, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Brokers...)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// odd are records that Kafka allows.
func odd(topic string) []*kgo.Record {
	binary := []byte{0, 0xff, 0xfe, '\n', 0xc3, 0x28}
	return []*kgo.Record{
		{Topic: topic, Value: nil, Key: nil},
		{Topic: topic, Value: []byte{}, Key: []byte{}},
		{Topic: topic, Value: binary, Key: binary, Headers: []kgo.RecordHeader{
			{Key: "b", Value: []byte("1")},
			{Key: "a", Value: nil},
			{Key: "b", Value: []byte{}},
			{Key: "", Value: binary},
			{Key: "Ünïcode \x01", Value: []byte("2")},
			{Key: "b", Value: []byte("3")},
			{Key: "ce_id", Value: binary},
		}},
		{Topic: topic, Value: bytes.Repeat([]byte("x"), 1<<20), Key: []byte("large"), Headers: []kgo.RecordHeader{{Key: "h", Value: bytes.Repeat([]byte{0xff}, 40_000)}}},
	}
}

func produce(t testing.TB, client *kgo.Client, records ...*kgo.Record) {
	t.Helper()
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestWhateverComesBecomesAMessageAndADeadLetter(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic, letters := b.topic(t, 1), b.topic(t, 1)
	client := foreign(t, b.config(), kgo.ProducerBatchMaxBytes(4<<20))
	want := odd(topic)
	produce(t, client, want...)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"}), topic)
	for i, w := range want {
		m := receive(t, messages)
		id := fmt.Sprintf("%s/0/%d", topic, i)
		for _, h := range w.Headers {
			if h.Key == "ce_id" {
				id = string(h.Value)
			}
		}
		if m.UUID != id || !bytes.Equal(m.Payload, w.Value) || (m.Payload == nil) != (w.Value == nil) {
			t.Errorf("%d: message %q with %d bytes", i, m.UUID, len(m.Payload))
		}
		if i == 2 && (m.Metadata["b"] != "3" || m.Metadata["a"] != "" || len(m.Metadata) != 5) {
			t.Errorf("metadata %q", m.Metadata)
		}
		m.Payload, m.Metadata = []byte("what a handler made of it"), message.Metadata{"b": "changed"}
		letter := kafka.DeadLetter(m, "group", fmt.Errorf("line one\nline two \xff %s", strings.Repeat("é", 2000)))
		if err := p.Publish(letters, letter); err != nil {
			t.Fatal(err)
		}
		m.Ack()
	}
	for i, got := range records(t, b.config(), letters, 0) {
		w := want[i]
		if !reflect.DeepEqual(got.Value, w.Value) || !reflect.DeepEqual(got.Key, w.Key) {
			t.Errorf("%d: value of %d bytes, key %q", i, len(got.Value), got.Key)
		}
		if len(got.Headers) != len(w.Headers)+6 {
			t.Fatalf("%d: %d headers", i, len(got.Headers))
		}
		for j, h := range w.Headers {
			if g := got.Headers[j]; g.Key != h.Key || !reflect.DeepEqual(g.Value, h.Value) {
				t.Errorf("%d: header %d is %q=%q, was %q=%q", i, j, g.Key, g.Value, h.Key, h.Value)
			}
		}
		added := map[string]string{}
		for _, h := range got.Headers[len(w.Headers):] {
			added[h.Key] = string(h.Value)
		}
		reason := added["deadletter_reason"]
		if added["deadletter_topic"] != topic || added["deadletter_partition"] != "0" || added["deadletter_offset"] != fmt.Sprint(i) || added["deadletter_group"] != "group" {
			t.Errorf("%d: %v", i, added)
		}
		if _, err := time.Parse(time.RFC3339Nano, added["deadletter_time"]); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(reason, "line one line two \uFFFD é") || len(reason) > kafka.MaxReasonBytes || !utf8.ValidString(reason) {
			t.Errorf("%d: reason %q", i, reason)
		}
	}
}

func TestForeignClientReadsWhatIsWritten(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	for _, codec := range []kafka.Compression{"", kafka.CompressionZstd, kafka.CompressionLZ4, kafka.CompressionSnappy, kafka.CompressionGzip, kafka.CompressionNone} {
		topic := b.topic(t, 1)
		p := publisher(t, b.config(), kafka.PublisherOptions{Compression: codec})
		m := keyed("key", "id-1", "payload \x00\xff")
		m.Metadata["z"], m.Metadata["bin"] = "last", "\x00\xff"
		if err := p.Publish(topic, m); err != nil {
			t.Fatalf("%s: %v", codec, err)
		}
		client := foreign(t, b.config(), kgo.ConsumeTopics(topic))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		r := client.PollRecords(ctx, 1).Records()
		cancel()
		if len(r) != 1 || string(r[0].Value) != "payload \x00\xff" || string(r[0].Key) != "key" {
			t.Fatalf("%s: %v", codec, r)
		}
		want := []kgo.RecordHeader{{Key: "bin", Value: []byte("\x00\xff")}, {Key: "ce_id", Value: []byte("id-1")}, {Key: "ce_partitionkey", Value: []byte("key")}, {Key: "z", Value: []byte("last")}}
		if !reflect.DeepEqual(r[0].Headers, want) {
			t.Errorf("%s: headers %q", codec, r[0].Headers)
		}
	}
}

func TestTransactionMarkersAreStepsNotWalls(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	client := foreign(t, b.config(), kgo.TransactionalID("tx"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for range 2 {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		produce(t, client, &kgo.Record{Topic: topic, Value: []byte("x")})
		if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	var fetches counter
	b.cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		fetches.next()
		return nil, nil, false
	})
	messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"}), topic)
	for _, want := range []int64{0, 2} {
		m := receive(t, messages)
		if at := position(t, m); at.Offset != want {
			t.Errorf("offset %d, want %d", at.Offset, want)
		}
		m.Ack()
	}
	silent(t, messages)
	if n := fetches.next(); n > 10 {
		t.Errorf("%d fetches at the end of the log", n)
	}
}

// alarms collects what OnAlarm gets.
type alarms struct {
	mu   sync.Mutex
	errs []error
}

func (a *alarms) raise(_ string, _ int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errs = append(a.errs, err)
}

func (a *alarms) first() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.errs) == 0 {
		return nil
	}
	return a.errs[0]
}

func deleteRecords(t testing.TB, client *kgo.Client, topic string, below int64) {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Offset = below
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(t.Context(), client)
	if err != nil || res.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatalf("delete records: %v, %+v", err, res)
	}
}

func TestLostOffsetsRaiseAnAlarm(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 6)
	s := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g"})
	receive(t, subscribe(t, s, topic)).Ack()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	deleteRecords(t, foreign(t, b.config()), topic, 4)

	var raised alarms
	stopped := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g", OnAlarm: raised.raise}), topic)
	eventually(t, "alarm", func() bool { return raised.first() != nil })
	var lost *kafka.OffsetError
	if err := raised.first(); !errors.As(err, &lost) || lost.Offset != 1 || lost.First != 4 || lost.End != 6 || lost.Topic != topic {
		t.Errorf("alarm: %v", err)
	}
	silent(t, stopped)
	if got := committed(t, b.config(), "g", topic)[0]; got != 1 {
		t.Errorf("committed %d", got)
	}

	var skipped alarms
	fresh := subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g2"})
	receive(t, subscribe(t, fresh, topic)).Ack()
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	deleteRecords(t, foreign(t, b.config()), topic, 6)
	fill(t, b.config(), topic, 1)
	messages := subscribe(t, subscriber(t, b.config(), kafka.SubscriberOptions{Group: "g2", SkipLost: true, OnAlarm: skipped.raise}), topic)
	m := receive(t, messages)
	if at := position(t, m); at.Offset != 6 || skipped.first() == nil {
		t.Errorf("goes on at %d, alarm: %v", at.Offset, skipped.first())
	}
	m.Ack()
}

func TestReader(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 1)
	fill(t, b.config(), topic, 5)
	open := func(from int64) *kafka.PartitionReader {
		r, err := kafka.NewPartitionReader(b.config(), topic, 0, from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	r := open(3)
	for want := range 2 {
		if got, err := r.Next(t.Context()); err != nil || got.Offset != int64(want+3) || string(got.Value) != fmt.Sprintf("payload %d", want+3) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Next(short); !errors.Is(err, context.DeadlineExceeded) || r.Offset() != 5 {
		t.Errorf("at the end: %v, offset %d", err, r.Offset())
	}
	b.restart()
	fill(t, b.config(), topic, 1)
	if got, err := r.Next(t.Context()); err != nil || got.Offset != 5 {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	var lost *kafka.OffsetError
	if _, err := open(100).Next(t.Context()); !errors.As(err, &lost) || lost.End != 6 {
		t.Errorf("past the end: %v", err)
	}
	nowhere, err := kafka.NewPartitionReader(b.config(), "nowhere", 0, kafka.First)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	if _, err := nowhere.Next(t.Context()); !errors.Is(err, kafka.ErrUnknownTopic) {
		t.Errorf("unknown topic: %v", err)
	}
	if _, err := kafka.NewPartitionReader(b.config(), topic, -1, 0); err == nil {
		t.Error("partition -1")
	}
}
