package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// PartitionReader reads one partition in order without a group: for replay and live tail. It is not safe
// for concurrent use.
type PartitionReader struct {
	link    *link
	cursor  *cursor
	pending []*Record
	// Moved, if not nil, is told where the reader is when it passed something that is no record, such as the end of a transaction.
	Moved func(offset int64)
}

// NewPartitionReader reads from an offset on, or from First or Last. It connects with the first Next.
func NewPartitionReader(c Config, topic string, partition int, from int64) (*PartitionReader, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("kafka reader: %w", err)
	}
	if partition < 0 || from < First || !validName(c.wireTopic(topic)) {
		return nil, fmt.Errorf("kafka reader: %s/%d/%d is no place to read from", cut(topic, 64), partition, from)
	}
	l := newLink(c)
	return &PartitionReader{link: l, cursor: &cursor{link: l, topic: topic, partition: partition, next: from, maxBytes: DefaultFetchBytes}}, nil
}

// Next returns the next record and waits for it at the end of the log. While the broker is away it keeps
// trying until ctx ends. It fails with *OffsetError when the broker no longer has the record, and with
// ErrUnknownTopic when topic or partition stay unknown for some seconds; after an error it may be called again.
func (r *PartitionReader) Next(ctx context.Context) (Record, error) {
	return r.next(ctx, math.MaxInt64)
}

// Until yields the records below an offset, which is not above the end of the log. The records of a log may end before it does: the marker at the
// end of a transaction has an offset too. It ends after the first error.
func (r *PartitionReader) Until(ctx context.Context, end int64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			record, err := r.next(ctx, end)
			if errors.Is(err, io.EOF) || !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// next is Next; io.EOF when there is no record below an offset.
func (r *PartitionReader) next(ctx context.Context, end int64) (Record, error) {
	var wait pause
	unknown := 0
	for len(r.pending) == 0 {
		if r.cursor.next >= end {
			return Record{}, io.EOF
		}
		if ctx.Err() != nil {
			return Record{}, fmt.Errorf("read next record: %w", context.Cause(ctx))
		}
		before := r.cursor.next
		records, err := r.cursor.read(ctx)
		r.pending = records
		if len(records) == 0 && r.cursor.next > before && r.Moved != nil {
			r.Moved(r.cursor.next)
		}
		if err == nil || len(records) > 0 {
			continue
		}
		var lost *OffsetError
		switch {
		case errors.As(err, &lost), errors.Is(err, errStuck):
			return Record{}, err
		case staleMetadata(err):
			if unknown++; missingTopic(err) && unknown > 8 { // 8 pauses: about 2 s
				return Record{}, fmt.Errorf("%w: %w", ErrUnknownTopic, err)
			}
			r.link.refresh()
		case !retriable(err) && ctx.Err() == nil:
			return Record{}, err
		}
		if !wait.sleep(ctx) {
			return Record{}, fmt.Errorf("read next record: %w (last: %w)", context.Cause(ctx), err)
		}
	}
	next := r.pending[0]
	if next.Offset >= end {
		return Record{}, io.EOF
	}
	r.pending[0] = nil
	r.pending = r.pending[1:]
	return next.own(), nil
}

// Offset is the offset of the record Next will return, or a higher one where the log has holes; First or
// Last before the first Next.
func (r *PartitionReader) Offset() int64 {
	if len(r.pending) > 0 {
		return r.pending[0].Offset
	}
	return r.cursor.next
}

// Close releases the connections; a Next under way fails.
func (r *PartitionReader) Close() error {
	r.link.close()
	return nil
}
