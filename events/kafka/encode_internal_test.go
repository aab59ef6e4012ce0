package kafka

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// What is made here is what kafka-go reads, with every codec.
func TestEncodedBatchIsKafkas(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1_700_000_000_123).UTC()
	type record struct {
		Offset     int64
		Time       time.Time
		Key, Value []byte
		Headers    []kafkago.Header
	}
	want := []record{
		{0, at, []byte("key"), bytes.Repeat([]byte("value "), 5000), []kafkago.Header{{Key: "ce_id", Value: []byte("1")}, {Key: "null"}}},
		{1, at.Add(-90 * time.Second), nil, []byte{0, 255}, nil}, // A clock that was set back.
		{2, at.Add(time.Hour), []byte("k"), nil, nil},
		{3, at, []byte{}, []byte{}, nil},
	}
	var entries []*entry
	for _, r := range want {
		e := &entry{key: r.Key, value: r.Value, headers: r.Headers, time: r.Time}
		e.size = recordSize(e)
		entries = append(entries, e)
	}
	for name, codec := range codecs {
		data, err := encodeBatch(entries, codec)
		if err != nil {
			t.Fatal(err)
		}
		var set protocol.RecordSet
		if _, err := set.ReadFrom(bytes.NewReader(data)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if set.Attributes.Compression() != codec {
			t.Errorf("%q: compressed with %s", name, set.Attributes.Compression())
		}
		var got []record
		for range want {
			r, err := set.Records.ReadRecord()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			key, keyErr := protocol.ReadAll(r.Key)
			value, valueErr := protocol.ReadAll(r.Value)
			if keyErr != nil || valueErr != nil {
				t.Fatal(keyErr, valueErr)
			}
			got = append(got, record{r.Offset, r.Time.UTC(), key, value, r.Headers})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
	}
}
