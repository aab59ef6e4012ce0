package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
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
	// maxKept bounds the buffer that is kept for the next response.
	maxKept = 2 * DefaultFetchBytes
)

// cursor reads one partition from an offset on.
type cursor struct {
	link      *link
	topic     string // without prefix
	partition int
	next      int64
	maxBytes  int
	seen      memo
	// buffer is the last response, when no record shares its memory.
	buffer []byte
	// rest is what of a response is not uncompressed yet. However little packed records take, about maxBytes of them are in memory at once.
	rest *fetchResponse
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
	if rest := c.rest; rest != nil {
		c.rest = nil
		if records, err := c.collect(rest); len(records) > 0 || err != nil {
			return records, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchWait+requestTimeout)
	defer cancel()
	// Until the answer is there, the buffer belongs to the connection: it may go on reading after ctx is done.
	buffer := c.buffer
	c.buffer = nil
	answer, err := c.link.RoundTrip(ctx, c.link.addr, &fetchRequest{
		clientID: c.link.config.clientID(), topic: c.link.config.wireTopic(c.topic), partition: int32(c.partition),
		offset: c.next, maxBytes: int32(min(c.maxBytes, maxResponse/2)), maxWait: fetchWait, buffer: buffer,
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s/%d: %w", c.topic, c.partition, err)
	}
	res := answer.(*fetchResponse)
	switch {
	case errors.Is(res.err, kafkago.OffsetOutOfRange):
		return nil, c.outOfRange(ctx)
	case res.err != nil:
		return nil, fmt.Errorf("fetch %s/%d: %w", c.topic, c.partition, res.err)
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

// collect takes the records out of the response and moves the cursor behind them, also where there is nothing to
// take: control batches and batches that compaction emptied. What comes before something unreadable is returned
// without an error; the next read begins there and says so. When maxBytes are uncompressed, the rest waits for the next read.
func (c *cursor) collect(res *fetchResponse) ([]*Record, error) {
	at := Position{Topic: c.topic, Partition: c.partition, HighWatermark: res.highWatermark}
	if c.seen.names == nil {
		c.seen.names = names{}
	}
	var records []*Record
	began, unpacked, limit := c.next, 0, orDefault(c.maxBytes, DefaultFetchBytes)
	for left := res.records; len(left) > 0; {
		if unpacked >= limit && len(records) > 0 {
			c.rest = &fetchResponse{records: left, body: res.body, highWatermark: res.highWatermark, again: true, shared: res.shared}
			return records, nil
		}
		x, rest, ok, err := nextBatch(left)
		if !ok {
			break
		}
		if left = rest; err == nil && x.last < c.next {
			continue
		}
		if err == nil && !x.control() {
			var more []*Record
			var size int
			res.shared = res.shared || !x.compressed()
			if more, size, err = x.read(records, c.next, at, &c.seen); err == nil {
				records, unpacked = more, unpacked+size
			}
		}
		if err != nil && c.next == began {
			return nil, fmt.Errorf("fetch %s/%d/%d: %w: %w", c.topic, c.partition, c.next, errStuck, err)
		}
		if err != nil {
			break
		}
		c.next = x.last + 1
	}
	if !res.shared && cap(res.body) <= maxKept {
		c.buffer = res.body
	}
	if len(res.records) > 0 && c.next == began && !res.again {
		return nil, fmt.Errorf("fetch %s/%d/%d: %w", c.topic, c.partition, c.next, errStuck)
	}
	return records, nil
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
