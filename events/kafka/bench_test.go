package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	kafkago "github.com/segmentio/kafka-go"

	"verbatim.dev/events/kafka"
)

var sizes = map[string]int{"100B": 100, "4KiB": 4 << 10, "512KiB": 512 << 10}

func payload(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte('a' + r.IntN(16))
	}
	return b
}

const benchPartitions = 4

// chunk is how many messages one call publishes.
func chunk(size int) int { return max(1, min(1000, 4<<20/size)) }

// BenchmarkPublish and BenchmarkConsume measure this package beside kafka-go alone, on the same broker.
func BenchmarkPublish(b *testing.B) {
	for name, size := range sizes {
		value := payload(size)
		b.Run(name+"/verbatim", func(b *testing.B) {
			broker := startBroker(b)
			topic := broker.topic(b, benchPartitions)
			p := publisher(b, broker.config(), kafka.PublisherOptions{})
			b.SetBytes(int64(size))
			b.ResetTimer()
			for done := 0; done < b.N; {
				var batch []*message.Message
				for range min(chunk(size), b.N-done) {
					m := message.NewMessage(fmt.Sprint(done), value)
					m.Metadata["ce_partitionkey"] = fmt.Sprint(done % 64)
					batch = append(batch, m)
					done++
				}
				if err := p.Publish(topic, batch...); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/kafka-go", func(b *testing.B) {
			broker := startBroker(b)
			topic := broker.topic(b, benchPartitions)
			w := &kafkago.Writer{
				Addr: kafkago.TCP(broker.config().Brokers...), Topic: topic, Balancer: kafkago.Murmur2Balancer{}, RequiredAcks: kafkago.RequireAll,
				BatchTimeout: 5 * time.Millisecond, BatchSize: 10_000, BatchBytes: 1 << 20, Compression: kafkago.Zstd,
			}
			defer w.Close()
			b.SetBytes(int64(size))
			b.ResetTimer()
			for done := 0; done < b.N; {
				var batch []kafkago.Message
				for range min(chunk(size), b.N-done) {
					batch = append(batch, kafkago.Message{
						Key: []byte(fmt.Sprint(done % 64)), Value: value,
						Headers: []kafkago.Header{{Key: "ce_id", Value: []byte(fmt.Sprint(done))}, {Key: "ce_partitionkey", Value: []byte(fmt.Sprint(done % 64))}},
					})
					done++
				}
				if err := w.WriteMessages(context.Background(), batch...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkConsume(b *testing.B) {
	for name, size := range sizes {
		prepare := func(b *testing.B) (*broker, string) {
			broker := startBroker(b)
			topic := broker.topic(b, benchPartitions)
			p := publisher(b, broker.config(), kafka.PublisherOptions{})
			value := payload(size)
			for done := 0; done < b.N; {
				var batch []*message.Message
				for range min(chunk(size), b.N-done) {
					m := message.NewMessage(fmt.Sprint(done), value)
					m.Metadata["ce_partitionkey"] = fmt.Sprint(done % 64)
					batch = append(batch, m)
					done++
				}
				if err := p.Publish(topic, batch...); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(size))
			return broker, topic
		}
		b.Run(name+"/verbatim", func(b *testing.B) {
			broker, topic := prepare(b)
			s := subscriber(b, broker.config(), kafka.SubscriberOptions{Group: "g", MaxInFlight: 1000})
			b.ResetTimer()
			messages := subscribe(b, s, topic)
			var batch []*message.Message
			for i := range b.N {
				m := <-messages
				batch = append(batch, m)
				if len(batch) == 500 || i == b.N-1 || size > 100_000 {
					for _, m := range batch {
						m.Ack()
					}
					batch = batch[:0]
				}
			}
			b.StopTimer()
		})
		b.Run(name+"/kafka-go", func(b *testing.B) {
			broker, topic := prepare(b)
			b.ResetTimer()
			r := kafkago.NewReader(kafkago.ReaderConfig{
				Brokers: broker.config().Brokers, GroupID: "g", Topic: topic, MinBytes: 1, MaxBytes: 1 << 20,
				CommitInterval: 100 * time.Millisecond, MaxWait: 500 * time.Millisecond, StartOffset: kafkago.FirstOffset,
			})
			var batch []kafkago.Message
			for i := range b.N {
				m, err := r.FetchMessage(context.Background())
				if err != nil || len(bytes.TrimSpace(m.Value)) == 0 {
					b.Fatal(err)
				}
				batch = append(batch, m)
				if len(batch) == 500 || i == b.N-1 || size > 100_000 {
					if err := r.CommitMessages(context.Background(), batch...); err != nil {
						b.Fatal(err)
					}
					batch = batch[:0]
				}
			}
			b.StopTimer()
			_ = r.Close()
		})
	}
}
