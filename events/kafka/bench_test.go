//go:build benchtransport

package kafka_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"

	"verbatim.dev/events/kafka"
)

// The benchmark compares this package with kafka-go alone on the same broker in the same run: round by round in turn,
// median of the rounds; the ratios are the medians of the rounds' ratios, of the time passed and of this process's
// processor time, which a busy machine changes less. Both write with acks=all, zstd at level 1 and the same limits of a
// batch; both read in a group, look at every message, and acknowledge in batches. scripts/bench-transport runs it.
const (
	benchPartitions = 4
	benchKeys       = 64
	ackEvery        = 500
)

var loads = []struct {
	name    string
	size, n int
}{{"100 B", 100, 300_000}, {"4 KiB", 4 << 10, 100_000}, {"512 KiB", 512 << 10, 600}}

func payload(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte('a' + r.IntN(16))
	}
	return b
}

// chunk is how many messages one call publishes.
func chunk(size int) int { return max(1, min(1000, 4<<20/size)) }

func TestBeside(t *testing.T) {
	rounds := 7
	if s := os.Getenv("VERBATIM_BENCH_ROUNDS"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	c := kafka.Config{Brokers: []string{os.Getenv("VERBATIM_TEST_KAFKA")}}
	if c.Brokers[0] == "" {
		c = startChild(t).config()
	}
	// kafka-go has one level for the whole process; a Publisher sets it too, but one side is measured before the first one.
	compress.ZstdCodec.Level = 1
	fmt.Printf("%-8s %-8s %26s %26s %7s %7s\n", "", "", "verbatim", "kafka-go alone", "ratio", "of cpu")
	for _, l := range loads {
		t.Run(l.name, func(t *testing.T) {
			ours, theirs := topicOn(t, c), topicOn(t, c)
			b := &beside{t: t, config: c, size: l.size, n: l.n, value: payload(l.size)}
			b.compare("publish", l.name, rounds, func() time.Duration { return b.publish(ours) }, func() time.Duration { return b.publishAlone(theirs) })
			source := topicOn(t, c)
			b.n *= 3
			b.publish(source)
			b.compare("consume", l.name, rounds, func() time.Duration { return b.consume(source) }, func() time.Duration { return b.consumeAlone(source) })
		})
	}
}

func topicOn(t *testing.T, c kafka.Config) string {
	name := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: name, Partitions: benchPartitions}}); err != nil {
		t.Fatal(err)
	}
	return name
}

type beside struct {
	t       *testing.T
	config  kafka.Config
	size, n int
	value   []byte
	groups  int
}

// compare runs the two in turn, who is first changing every round.
func (b *beside) compare(what, size string, rounds int, ours, theirs func() time.Duration) {
	var a, o []time.Duration
	var ratios, cpu []float64
	for i := range rounds + 1 {
		var x, y spent
		if i%2 == 0 {
			x, y = measure(ours), measure(theirs)
		} else {
			y, x = measure(theirs), measure(ours)
		}
		if i > 0 { // the first round warms up
			a, o = append(a, x.time), append(o, y.time)
			ratios, cpu = append(ratios, y.time.Seconds()/x.time.Seconds()), append(cpu, y.cpu.Seconds()/x.cpu.Seconds())
		}
	}
	fmt.Printf("%-8s %-8s %26s %26s %7.2f %7.2f\n", what, size, b.rate(median(a)), b.rate(median(o)), median(ratios), median(cpu))
}

// spent is what one round took; cpu counts joining and leaving too.
type spent struct{ time, cpu time.Duration }

func measure(round func() time.Duration) spent {
	runtime.GC()
	began := processorTime()
	return spent{time: round(), cpu: processorTime() - began}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *beside) rate(d time.Duration) string {
	perSecond := float64(b.n) / d.Seconds()
	return fmt.Sprintf("%8.0f msg/s %6.1f MB/s", perSecond, perSecond*float64(b.size)/1e6)
}

func median[T cmp.Ordered](d []T) T {
	slices.Sort(d)
	return d[len(d)/2]
}

func (b *beside) publish(topic string) time.Duration {
	p, err := kafka.NewPublisher(b.config, kafka.PublisherOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer p.Close()
	began := time.Now()
	for done := 0; done < b.n; {
		var batch []*message.Message
		for range min(chunk(b.size), b.n-done) {
			m := message.NewMessage(strconv.Itoa(done), b.value)
			m.Metadata["ce_partitionkey"] = strconv.Itoa(done % benchKeys)
			batch = append(batch, m)
			done++
		}
		if err := p.Publish(topic, batch...); err != nil {
			b.t.Fatal(err)
		}
	}
	return time.Since(began)
}

func (b *beside) publishAlone(topic string) time.Duration {
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafkago.Writer{
		Addr: kafkago.TCP(b.config.Brokers...), Topic: topic, Balancer: kafkago.Murmur2Balancer{}, RequiredAcks: kafkago.RequireAll,
		Transport: transport, BatchTimeout: kafka.DefaultLinger, BatchSize: kafka.DefaultBatchMessages, BatchBytes: kafka.DefaultBatchBytes, Compression: kafkago.Zstd,
	}
	defer w.Close()
	began := time.Now()
	for done := 0; done < b.n; {
		var batch []kafkago.Message
		for range min(chunk(b.size), b.n-done) {
			key := strconv.Itoa(done % benchKeys)
			batch = append(batch, kafkago.Message{
				Key: []byte(key), Value: b.value,
				Headers: []kafkago.Header{{Key: "ce_id", Value: []byte(strconv.Itoa(done))}, {Key: "ce_partitionkey", Value: []byte(key)}},
			})
			done++
		}
		if err := w.WriteMessages(context.Background(), batch...); err != nil {
			b.t.Fatal(err)
		}
	}
	return time.Since(began)
}

func (b *beside) group() string {
	b.groups++
	return fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), b.groups)
}

// consume measures from the first message on: joining the group is not what is compared.
func (b *beside) consume(topic string) time.Duration {
	s, err := kafka.NewSubscriber(b.config, kafka.SubscriberOptions{Group: b.group(), MaxInFlight: 2 * ackEvery})
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	messages, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		b.t.Fatal(err)
	}
	var began time.Time
	var batch []*message.Message
	for i := range b.n {
		m := <-messages
		if i == 0 {
			began = time.Now()
		}
		if len(m.Payload) != b.size {
			b.t.Fatal("wrong payload")
		}
		if batch = append(batch, m); len(batch) == ackEvery || i == b.n-1 || b.size > 100_000 {
			for _, m := range batch {
				m.Ack()
			}
			batch = batch[:0]
		}
	}
	return time.Since(began)
}

func (b *beside) consumeAlone(topic string) time.Duration {
	r := kafkago.NewReader(kafkago.ReaderConfig{
		Brokers: b.config.Brokers, GroupID: b.group(), Topic: topic, MinBytes: 1, MaxBytes: kafka.DefaultFetchBytes,
		CommitInterval: kafka.DefaultCommitInterval, MaxWait: 500 * time.Millisecond, StartOffset: kafkago.FirstOffset,
	})
	defer r.Close()
	var began time.Time
	var batch []kafkago.Message
	for i := range b.n {
		m, err := r.FetchMessage(context.Background())
		if err != nil {
			b.t.Fatal(err)
		}
		if i == 0 {
			began = time.Now()
		}
		if len(m.Value) != b.size {
			b.t.Fatal("wrong payload")
		}
		if batch = append(batch, m); len(batch) == ackEvery || i == b.n-1 || b.size > 100_000 {
			if err := r.CommitMessages(context.Background(), batch...); err != nil {
				b.t.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	return time.Since(began)
}
