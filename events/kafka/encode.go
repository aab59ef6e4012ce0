package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	kafkago "github.com/segmentio/kafka-go"
)

// A batch in format v2 (https://kafka.apache.org/documentation/#recordbatch): a header of 61 bytes, and records, which are compressed as one.
// It is made here and not by kafka-go, which makes it while it sends: so the next batch is ready when the answer for the former one comes.
const (
	batchHeader = 61
	// Where fields stand in the header. The length is of everything behind it, so is the checksum.
	batchLengthAt, batchChecksumAt, batchAttributesAt = 8, 17, 21
	// sizeBytes stand in front of what a produce request says of a partition: how many bytes follow.
	sizeBytes = 4
)

// buffers are what records are laid out in before they are compressed.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// encodeBatch makes a batch of entries, at least one, as a produce request carries it: behind its size.
func encodeBatch(entries []*entry, codec kafkago.Compression) ([]byte, error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	size := batchHeader
	for _, e := range entries {
		size += e.size
	}
	if cap(*buffer) < size {
		*buffer = make([]byte, 0, size)
	}
	first := entries[0].time.UnixMilli()
	last, records := first, (*buffer)[:0]
	for i, e := range entries {
		at := e.time.UnixMilli()
		last = max(last, at)
		records = appendRecord(records, e, at-first, int64(i))
	}
	*buffer = records
	var out bytes.Buffer
	head := make([]byte, sizeBytes, sizeBytes+batchHeader)
	head = binary.BigEndian.AppendUint64(head, 0) // Offset, given by the broker.
	head = binary.BigEndian.AppendUint32(head, 0) // Length: below.
	head = binary.BigEndian.AppendUint32(head, noLeaderEpoch)
	head = append(head, 2)                        // Magic.
	head = binary.BigEndian.AppendUint32(head, 0) // Checksum: below.
	head = binary.BigEndian.AppendUint16(head, uint16(codec))
	head = binary.BigEndian.AppendUint32(head, uint32(len(entries)-1))
	head = binary.BigEndian.AppendUint64(head, uint64(first))
	head = binary.BigEndian.AppendUint64(head, uint64(last))
	head = append(head, noProducer[:]...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(entries)))
	if codec == 0 {
		out.Grow(sizeBytes + batchHeader + len(records))
	} else {
		out.Grow(sizeBytes + batchHeader + len(records)/3)
	}
	_, _ = out.Write(head) // It never fails.
	if err := compressTo(&out, records, codec); err != nil {
		return nil, fmt.Errorf("compress batch: %w", err)
	}
	batch := out.Bytes()[sizeBytes:]
	binary.BigEndian.PutUint32(out.Bytes(), uint32(len(batch)))
	binary.BigEndian.PutUint32(batch[batchLengthAt:], uint32(len(batch)-batchLengthAt-4))
	binary.BigEndian.PutUint32(batch[batchChecksumAt:], crc32.Checksum(batch[batchAttributesAt:], castagnoli))
	return out.Bytes(), nil
}

// Of a producer that is not idempotent: epoch of the leader, and id, epoch and sequence of the producer, all -1.
const noLeaderEpoch = ^uint32(0)

var noProducer = [8 + 2 + 4]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}

func compressTo(out *bytes.Buffer, records []byte, codec kafkago.Compression) error {
	if codec == 0 {
		_, err := out.Write(records)
		return err
	}
	w := codec.Codec().NewWriter(out)
	_, err := w.Write(records)
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	return err
}

// appendRecord adds a record; varints are zigzag, -1 is the length of null.
func appendRecord(b []byte, e *entry, timestamp, offset int64) []byte {
	length := 1 + varintSize(timestamp) + varintSize(offset) + bytesSize(e.key) + bytesSize(e.value) + varintSize(int64(len(e.headers)))
	for _, h := range e.headers {
		length += varintSize(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value)
	}
	b = binary.AppendVarint(b, int64(length))
	b = append(b, 0) // Attributes.
	b = binary.AppendVarint(b, timestamp)
	b = binary.AppendVarint(b, offset)
	b = appendBytes(b, e.key)
	b = appendBytes(b, e.value)
	b = binary.AppendVarint(b, int64(len(e.headers)))
	for _, h := range e.headers {
		b = append(binary.AppendVarint(b, int64(len(h.Key))), h.Key...)
		b = appendBytes(b, h.Value)
	}
	return b
}

func appendBytes(b, value []byte) []byte {
	if value == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(value))), value...)
}

func bytesSize(value []byte) int {
	if value == nil {
		return 1
	}
	return varintSize(int64(len(value))) + len(value)
}

func varintSize(v int64) int {
	n := 1
	for u := uint64(v<<1) ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}
