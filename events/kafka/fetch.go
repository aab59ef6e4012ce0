package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// First and Last stand for the beginning and the end of a partition where an offset is asked for.
const (
	First = kafkago.FirstOffset
	Last  = kafkago.LastOffset
)

const (
	// DefaultFetchBytes bounds one response; a larger record still comes whole (KIP-74).
	DefaultFetchBytes = 1 << 20
	// fetchWait is how long the broker may hold a fetch at the end of the log before it answers with
	// nothing. It answers at once when a record arrives.
	fetchWait = 500 * time.Millisecond
)

// cursor reads one partition from an offset on.
type cursor struct {
	link      *link
	topic     string // without prefix
	partition int
	next      int64
	maxBytes  int
}

// errStuck says that the broker answers with data that holds nothing to read.
var errStuck = errors.New("the log has data here that holds no readable record")

// read returns the next records, or none when there are none within fetchWait. An offset the broker does not
// have is an *OffsetError and leaves the cursor where it is.
func (c *cursor) read(ctx context.Context) ([]*Record, error) {
	if c.next < 0 {
		first, end, err := c.link.offsets(ctx, c.topic, c.partition)
		if err != nil {
			return nil, fmt.Errorf("resolve start offset: %w", err)
		}
		if c.next == First {
			c.next = first
		} else {
			c.next = end
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchWait+requestTimeout)
	defer cancel()
	res, err := c.link.client.Fetch(ctx, &kafkago.FetchRequest{
		Topic: c.link.config.wireTopic(c.topic), Partition: c.partition, Offset: c.next,
		MinBytes: 1, MaxBytes: int64(c.maxBytes), MaxWait: fetchWait,
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("fetch %s/%d: %w", c.topic, c.partition, err)
	case errors.Is(res.Error, kafkago.OffsetOutOfRange):
		return nil, c.outOfRange(ctx)
	case res.Error != nil:
		return nil, fmt.Errorf("fetch %s/%d: %w", c.topic, c.partition, res.Error)
	}
	return c.collect(res)
}

// outOfRange finds out what the broker has. When the offset is there after all, it was a matter of
// moments and the next read will do.
func (c *cursor) outOfRange(ctx context.Context) error {
	first, end, err := c.link.offsets(ctx, c.topic, c.partition)
	if err != nil {
		return fmt.Errorf("offset %d of %s/%d is out of range: %w", c.next, c.topic, c.partition, err)
	}
	if c.next >= first && c.next <= end {
		return fmt.Errorf("fetch %s/%d: %w", c.topic, c.partition, kafkago.OffsetOutOfRange)
	}
	return &OffsetError{Topic: c.topic, Partition: c.partition, Offset: c.next, First: first, End: end}
}

// collect copies the records out of the response and moves the cursor behind them. kafka-go's own stream
// hides control batches, and with them the way past them, so the batches are walked here.
func (c *cursor) collect(res *kafkago.FetchResponse) ([]*Record, error) {
	batches := []kafkago.RecordReader{res.Records}
	if s, ok := res.Records.(*protocol.RecordStream); ok {
		batches = s.Records
	}
	var records []*Record
	seen, began := 0, c.next
	for _, b := range batches {
		_, control := b.(*protocol.ControlBatch)
		n := 0
		for {
			raw, err := b.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return records, fmt.Errorf("decode record near %s/%d/%d: %w", c.topic, c.partition, c.next, err)
			}
			n++
			r, err := c.record(raw, res.HighWatermark)
			if err != nil {
				return records, err
			}
			if r.Offset < c.next {
				continue
			}
			c.next = r.Offset + 1
			if !control {
				records = append(records, r)
			}
		}
		seen += n
		if e, ok := b.(*protocol.RecordBatch); ok && n == 0 {
			// A batch emptied by compaction: its first offset holds nothing.
			c.next = max(c.next, e.BaseOffset) + 1
			seen++
		}
	}
	if seen > 0 && c.next == began {
		return nil, fmt.Errorf("fetch %s/%d/%d: %w", c.topic, c.partition, c.next, errStuck)
	}
	return records, nil
}

func (c *cursor) record(raw *kafkago.Record, high int64) (*Record, error) {
	key, err := readAll(raw.Key)
	if err != nil {
		return nil, fmt.Errorf("read key of %s/%d/%d: %w", c.topic, c.partition, raw.Offset, err)
	}
	value, err := readAll(raw.Value)
	if err != nil {
		return nil, fmt.Errorf("read value of %s/%d/%d: %w", c.topic, c.partition, raw.Offset, err)
	}
	r := &Record{
		Position: Position{
			Topic: c.topic, Partition: c.partition, Offset: raw.Offset,
			Key: key, Time: raw.Time, HighWatermark: high,
		},
		Value: value,
	}
	if len(raw.Headers) > 0 {
		r.Headers = make([]Header, len(raw.Headers))
		for i, h := range raw.Headers {
			r.Headers[i] = Header(h)
		}
	}
	return r, nil
}

// readAll copies the bytes and gives kafka-go its buffer back; null stays nil.
func readAll(b kafkago.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close()
	return kafkago.ReadAll(b)
}

// offsets returns the first offset and the end of a partition.
func (l *link) offsets(ctx context.Context, topic string, partition int) (first, end int64, err error) {
	wire := l.config.wireTopic(topic)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	res, err := l.client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{
		wire: {kafkago.FirstOffsetOf(partition), kafkago.LastOffsetOf(partition)},
	}})
	if err != nil {
		return 0, 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	for _, p := range res.Topics[wire] {
		if p.Partition != partition {
			continue
		}
		if p.Error != nil {
			return 0, 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, p.Error)
		}
		return p.FirstOffset, p.LastOffset, nil
	}
	return 0, 0, fmt.Errorf("list offsets of %s/%d: the broker did not answer for it", topic, partition)
}
