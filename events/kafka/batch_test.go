package kafka

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// encoded is a record set as kafka-go writes it, without the length in front.
func encoded(t testing.TB, attributes protocol.Attributes, records ...protocol.Record) []byte {
	t.Helper()
	fastZstd() // Later it would be a race with another test's publisher.
	var b bytes.Buffer
	set := protocol.RecordSet{Version: 2, Attributes: attributes, Records: protocol.NewRecordReader(records...)}
	if _, err := set.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[4:]
}

func some() []protocol.Record {
	at := time.UnixMilli(1_700_000_000_000)
	return []protocol.Record{
		{Time: at, Key: protocol.NewBytes([]byte("k")), Value: protocol.NewBytes([]byte("one")), Headers: []protocol.Header{{Key: "a", Value: []byte("1")}, {Key: "b", Value: nil}}},
		{Time: at.Add(time.Second), Value: protocol.NewBytes([]byte{})},
		{Time: at, Key: protocol.NewBytes([]byte("k")), Headers: []protocol.Header{{Key: "", Value: []byte{0xff}}}},
	}
}

func TestBatchesOfEveryCompression(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1_700_000_000_000)
	want := []*Record{
		{Position: Position{Topic: "t", Offset: 0, Key: []byte("k"), Time: at, HighWatermark: 9}, Value: []byte("one"), Headers: []Header{{"a", []byte("1")}, {"b", nil}}},
		{Position: Position{Topic: "t", Offset: 1, Time: at.Add(time.Second), HighWatermark: 9}, Value: []byte{}},
		{Position: Position{Topic: "t", Offset: 2, Key: []byte("k"), Time: at, HighWatermark: 9}, Headers: []Header{{"", []byte{0xff}}}},
	}
	for name, codec := range codecs {
		c := &cursor{topic: "t"}
		got, err := c.collect(&fetchResponse{records: encoded(t, protocol.Attributes(codec), some()...), highWatermark: 9})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if c.next != 3 {
			t.Errorf("%s: cursor at %d", name, c.next)
		}
	}
}

func TestDamageIsSaidAndCostsNothingBeforeIt(t *testing.T) {
	t.Parallel()
	good := encoded(t, protocol.Attributes(kafkago.Zstd), some()...)
	bad := append([]byte(nil), good...)
	bad[7] = 3 // its offsets follow the first batch's
	bad[len(bad)-1] ^= 1
	c := &cursor{topic: "t"}
	got, err := c.collect(&fetchResponse{records: append(append([]byte(nil), good...), bad...)})
	if err != nil || len(got) != 3 || c.next != 3 {
		t.Fatalf("%d records, cursor at %d: %v", len(got), c.next, err)
	}
	if got, err := c.collect(&fetchResponse{records: bad}); err == nil || len(got) > 0 || c.next != 3 {
		t.Errorf("damaged: %d records, cursor at %d: %v", len(got), c.next, err)
	}
	// The end of a response may be a part of a batch.
	c = &cursor{topic: "t"}
	if got, err := c.collect(&fetchResponse{records: append(append([]byte(nil), good...), good[:40]...)}); err != nil || len(got) != 3 {
		t.Errorf("cut off: %d records: %v", len(got), err)
	}
}

func TestSharedMemoryIsNotOverwrittenByAppending(t *testing.T) {
	t.Parallel()
	c := &cursor{topic: "t"}
	got, err := c.collect(&fetchResponse{records: encoded(t, 0, some()...)})
	if err != nil {
		t.Fatal(err)
	}
	_ = append(got[0].Key, "xxxxxxxx"...)
	_ = append(got[0].Value, "xxxxxxxx"...)
	if string(got[0].Value) != "one" || got[0].Headers[0].Key != "a" || string(got[2].Key) != "k" {
		t.Error("a record was overwritten")
	}
}

// FuzzCollect: whatever a broker sends, nothing panics, nothing grows beyond the batch, and the cursor never goes back.
func FuzzCollect(f *testing.F) {
	for _, codec := range codecs {
		f.Add(encoded(f, protocol.Attributes(codec), some()...), int64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, next int64) {
		c := &cursor{topic: "t", next: max(next, 0)}
		began := c.next
		records, err := c.collect(&fetchResponse{records: b})
		if c.next < began || err != nil && len(records) > 0 {
			t.Fatalf("cursor from %d to %d, %d records, %v", began, c.next, len(records), err)
		}
		for _, r := range records {
			if r.Offset < began || r.Offset >= c.next {
				t.Fatalf("record %d, cursor from %d to %d", r.Offset, began, c.next)
			}
		}
	})
}

// FuzzResponse: the same of the response around the batches.
func FuzzResponse(f *testing.F) {
	f.Add([]byte{0x76, 0x65, 0x72, 0x62, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 't', 0, 0, 0, 1}, int16(11))
	f.Fuzz(func(t *testing.T, b []byte, version int16) {
		r := &fetchRequest{topic: "t", version: version}
		if res, err := r.decode(b); err == nil && len(res.records) > len(b) {
			t.Fatal("more records than bytes")
		}
	})
}

// A response of little bytes that become many is uncompressed piece by piece; nothing of it is lost, and what comes after it neither.
func TestWhatIsUncompressedAtOnceIsBounded(t *testing.T) {
	t.Parallel()
	const batches, size = 40, 1 << 20
	var packed []byte
	for range batches {
		packed = append(packed, encoded(t, protocol.Attributes(kafkago.Zstd), protocol.Record{Value: protocol.NewBytes(make([]byte, size))})...)
	}
	all := packed
	for n := range int64(batches) {
		binary.BigEndian.PutUint64(all, uint64(n))
		all = all[batchHead+binary.BigEndian.Uint32(all[8:]):]
	}
	if len(packed) > DefaultFetchBytes/4 {
		t.Fatalf("%d bytes are no small response", len(packed))
	}
	c := &cursor{topic: "t", maxBytes: 4 * size}
	res := &fetchResponse{records: append(packed, packed[:50]...), body: packed, highWatermark: batches}
	next := int64(0)
	for reads := 0; res != nil; reads++ {
		records, err := c.collect(res)
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, r := range records {
			if r.Offset != next || r.HighWatermark != batches {
				t.Fatalf("record %d of %d, want %d", r.Offset, r.HighWatermark, next)
			}
			next, total = next+1, total+len(r.Value)
		}
		if total > 5*size {
			t.Errorf("%d bytes are uncompressed at once, %d are allowed", total, c.maxBytes)
		}
		res, c.rest = c.rest, nil
	}
	if next != batches {
		t.Errorf("%d records of %d", next, batches)
	}
	if cap(c.buffer) == 0 {
		t.Error("the response's memory is not used again")
	}
}

// What is uncompressed next does not come to lie where the records of before are.
func TestRecordsHaveTheirMemoryForThemselves(t *testing.T) {
	t.Parallel()
	var kept []*Record
	for n := range 20 {
		value := bytes.Repeat([]byte{byte('a' + n)}, 1000+n)
		c := &cursor{topic: "t", maxBytes: 1 << 20}
		packed := encoded(t, protocol.Attributes(kafkago.Zstd), protocol.Record{Value: protocol.NewBytes(value)})
		records, err := c.collect(&fetchResponse{records: packed, body: packed, highWatermark: 1})
		if err != nil || len(records) != 1 {
			t.Fatal(len(records), err)
		}
		kept = append(kept, records...)
	}
	for n, r := range kept {
		if !bytes.Equal(r.Value, bytes.Repeat([]byte{byte('a' + n)}, 1000+n)) {
			t.Fatalf("record %d has the bytes of another one", n)
		}
	}
}
