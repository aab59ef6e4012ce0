package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// maxUnpacked bounds what one compressed batch may become. Brokers bound the compressed batch only.
const maxUnpacked = 256 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is the head of a record batch in format v2 (https://kafka.apache.org/documentation/#recordbatch).
type batch struct {
	first, last int64 // offsets; last also where compaction has removed the record
	attributes  int16
	base        int64 // ms; the records' times are relative to it
	appended    int64 // ms; the broker's time, when logAppendTime
	count       int
	records     []byte // as they are stored
}

const (
	batchHead       = 12 // base offset and length
	attrCompression = 0x07
	attrAppendTime  = 0x08
	attrControl     = 0x20
	// smallestRecord is length, attributes, two deltas, two lengths and the count of headers.
	smallestRecord = 7
)

// nextBatch cuts the first batch off; ok is false when only a part of one is left, which is how brokers fill a
// response up.
func nextBatch(b []byte) (x batch, rest []byte, ok bool, err error) {
	if len(b) < batchHead {
		return x, nil, false, nil
	}
	d := &reading{b: b}
	x.first = d.i64()
	size := d.i32()
	if size < 0 || int(size) > len(d.b) {
		return x, nil, false, nil
	}
	body := d.take(int(size))
	rest, d = d.b, &reading{b: body}
	d.i32() // leader epoch
	if magic := d.i8(); magic != 2 {
		return x, rest, true, d.or(fmt.Errorf("record format v%d is not known, it is v2 since Kafka 0.11", magic))
	}
	sum := uint32(d.i32())
	if d.err == nil && crc32.Checksum(d.b, castagnoli) != sum {
		return x, rest, true, errors.New("checksum does not match")
	}
	x.attributes = d.i16()
	x.last = x.first + int64(d.i32())
	x.base = d.i64()
	x.appended = d.i64()
	d.take(8 + 2 + 4) // producer id and epoch, base sequence
	x.count = int(d.i32())
	x.records = d.b
	if d.err == nil && (x.first < 0 || x.last < x.first || x.last == math.MaxInt64 || x.count < 0) {
		d.err = errors.New("offsets make no sense")
	}
	return x, rest, true, d.err
}

func (x *batch) control() bool { return x.attributes&attrControl != 0 }

func (x *batch) compressed() bool { return x.attributes&attrCompression != 0 }

// memo is what a cursor knows from the batches before.
type memo struct {
	names names
	// headers is how many headers a record has at most, lately.
	headers int
}

// maxHeaderHint bounds what one hostile batch makes the next one allocate.
const maxHeaderHint = 32

// unpacking holds what batches are uncompressed into. How large one becomes is not known before, and records stay in memory for long: so
// they get memory of exactly their size, which nobody has to clear first, and this is used again.
// One that a hostile batch has made large is not kept.
var unpacking = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// unpacked returns the records without compression.
func (x *batch) unpacked() ([]byte, error) {
	id := kafkago.Compression(x.attributes & attrCompression)
	if id == 0 {
		return x.records, nil
	}
	codec := id.Codec()
	if codec == nil {
		return nil, fmt.Errorf("compression %d is not known", id)
	}
	r := codec.NewReader(bytes.NewReader(x.records))
	defer r.Close()
	out := unpacking.Get().(*bytes.Buffer)
	out.Reset()
	defer func() {
		if out.Cap() <= 2*maxKept {
			unpacking.Put(out)
		}
	}()
	n, err := out.ReadFrom(io.LimitReader(r, maxUnpacked+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("uncompress: %w", err)
	case n > maxUnpacked:
		return nil, fmt.Errorf("uncompress: a batch of more than %d bytes", maxUnpacked)
	}
	return bytes.Clone(out.Bytes()), nil
}

// names holds header names that were seen, so that each is one string however many records have it.
type names map[string]string

const maxNames = 256

func (n names) get(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(n) < maxNames {
		n[s] = s
	}
	return s
}

// read appends the batch's records from offset from on, and returns also the bytes of the memory that they share.
func (x *batch) read(records []*Record, from int64, at Position, seen *memo) ([]*Record, int, error) {
	raw, err := x.unpacked()
	if err != nil {
		return records, 0, err
	}
	count := min(x.count, len(raw)/smallestRecord)
	slab := make([]Record, 0, count)
	headers := make([]Header, 0, count*seen.headers)
	records = slices.Grow(records, count)
	d := &reading{b: raw}
	var before []Header
	for range x.count {
		if len(slab) == count {
			return records, 0, errShort
		}
		slab = append(slab, Record{Position: at})
		r := &slab[len(slab)-1]
		if headers, err = x.record(d, r, headers, before, seen.names); err != nil {
			return records, 0, err
		}
		before = r.Headers
		if r.Offset >= from {
			records = append(records, r)
		}
	}
	if count > 0 {
		seen.headers = min((len(headers)+count-1)/count, maxHeaderHint)
	}
	return records, cap(raw), nil
}

// record reads one record; before is the headers of the one before it.
func (x *batch) record(d *reading, r *Record, headers, before []Header, seen names) ([]Header, error) {
	body := d.bytes()
	d = &reading{b: body, err: d.err}
	d.i8() // attributes, unused
	at := x.base + d.varint()
	if x.attributes&attrAppendTime != 0 {
		at = x.appended
	}
	delta := d.varint()
	if d.err == nil && (delta < 0 || delta > x.last-x.first) {
		return headers, errors.New("a record's offset is outside of its batch")
	}
	r.Offset, r.Time = x.first+delta, time.UnixMilli(at)
	r.Key = d.bytes()
	r.Value = d.bytes()
	n := d.varint()
	if d.err == nil && (n < 0 || n > int64(len(d.b))/2) {
		return headers, errShort
	}
	began := len(headers)
	for i := range int(n) {
		name := d.bytes()
		// Most records have the same headers as the one before.
		if i < len(before) && before[i].Key == string(name) {
			headers = append(headers, Header{Key: before[i].Key, Value: d.bytes()})
		} else {
			headers = append(headers, Header{Key: seen.get(name), Value: d.bytes()})
		}
		if d.err != nil {
			return headers, d.err
		}
	}
	if n > 0 {
		r.Headers = headers[began:len(headers):len(headers)]
	}
	return headers, d.err
}
