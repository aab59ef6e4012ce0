package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// The Fetch API (https://kafka.apache.org/protocol#The_Messages_Fetch) in the versions that carry record batches in
// format v2 and need no topic ids. kafka-go's own request of that name copies every key and value out of its buffers,
// hides where a batch ends and drops the time at which the broker appended it; so the response is read here as it
// comes. kafka-go still finds the leader, holds the connections and negotiates the version.
const (
	fetchMinVersion = 4
	fetchMaxVersion = 11
	// maxResponse bounds one response. A record may be larger than what was asked for (KIP-74), but nothing in
	// Kafka is larger than its 32-bit batch, and nothing here is larger than this.
	maxResponse = 512 << 20
)

// fetchRequest asks for one partition; fetchResponse is its answer.
type fetchRequest struct {
	clientID  string
	topic     string
	partition int32
	offset    int64
	maxBytes  int32
	maxWait   time.Duration
	version   int16
	// buffer is used for the answer where it is large enough.
	buffer []byte
}

type fetchResponse struct {
	err           error
	highWatermark int64
	records       []byte
	body          []byte // what records is a part of
	// again says that something of it was taken before, shared that records share its memory.
	again, shared bool
}

var (
	_ protocol.RawExchanger    = (*fetchRequest)(nil)
	_ protocol.BrokerMessage   = (*fetchRequest)(nil)
	_ protocol.PreparedMessage = (*fetchRequest)(nil)
)

// ApiKey implements protocol.Message.
func (r *fetchRequest) ApiKey() protocol.ApiKey { return protocol.Fetch }

// ApiKey implements protocol.Message.
func (r *fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch }

// Prepare implements protocol.PreparedMessage: it is told the version that both sides speak.
func (r *fetchRequest) Prepare(version int16) { r.version = min(version, fetchMaxVersion) }

// Required implements protocol.RawExchanger.
func (r *fetchRequest) Required(map[protocol.ApiKey]int16) bool { return true }

// Broker implements protocol.BrokerMessage: the partition's leader.
func (r *fetchRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	topic, ok := cluster.Topics[r.topic]
	if !ok {
		return protocol.Broker{}, protocol.NewErrNoTopic(r.topic)
	}
	partition, ok := topic.Partitions[r.partition]
	if !ok {
		return protocol.Broker{}, protocol.NewErrNoPartition(r.topic, r.partition)
	}
	leader, ok := cluster.Brokers[partition.Leader]
	if !ok {
		return protocol.Broker{}, protocol.NewErrNoLeader(r.topic, r.partition)
	}
	return leader, nil
}

// RawExchange implements protocol.RawExchanger. The connection carries one request at a time and is closed after
// an error.
func (r *fetchRequest) RawExchange(conn io.ReadWriter) (protocol.Message, error) {
	if r.version < fetchMinVersion {
		return nil, fmt.Errorf("broker speaks version %d of the Fetch API, %d is needed (Kafka 0.11)", r.version, fetchMinVersion)
	}
	if _, err := conn.Write(r.encode()); err != nil {
		return nil, fmt.Errorf("send fetch: %w", err)
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, fmt.Errorf("receive fetch: %w", err)
	}
	size := int32(binary.BigEndian.Uint32(head[:]))
	if size < 0 || size > maxResponse {
		return nil, fmt.Errorf("receive fetch: a response of %d bytes", size)
	}
	body := r.buffer
	if cap(body) < int(size) {
		body = make([]byte, size)
	}
	body = body[:size]
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, fmt.Errorf("receive fetch: %w", err)
	}
	return r.decode(body)
}

// correlation is echoed by the broker. With one request at a time on a connection any number will do.
const correlation = 0x76657262

func (r *fetchRequest) encode() []byte {
	b := make([]byte, 4, 128+len(r.clientID)+len(r.topic))
	i16 := func(v int16) { b = binary.BigEndian.AppendUint16(b, uint16(v)) }
	i32 := func(v int32) { b = binary.BigEndian.AppendUint32(b, uint32(v)) }
	i64 := func(v int64) { b = binary.BigEndian.AppendUint64(b, uint64(v)) }
	text := func(s string) {
		i16(int16(len(s)))
		b = append(b, s...)
	}
	i16(int16(protocol.Fetch))
	i16(r.version)
	i32(correlation)
	text(r.clientID[:min(len(r.clientID), math.MaxInt16)])
	i32(-1) // a consumer, no replica
	i32(int32(r.maxWait / time.Millisecond))
	i32(1) // answer as soon as there is a byte
	i32(r.maxBytes)
	b = append(b, 0) // isolation: read uncommitted
	if r.version >= 7 {
		i32(0)  // no session (KIP-227)
		i32(-1) // and none to be made
	}
	i32(1)
	text(r.topic)
	i32(1)
	i32(r.partition)
	if r.version >= 9 {
		i32(-1) // leader epoch is not known
	}
	i64(r.offset)
	if r.version >= 5 {
		i64(-1) // log start, for replicas
	}
	i32(r.maxBytes)
	if r.version >= 7 {
		i32(0) // nothing to forget
	}
	if r.version >= 11 {
		text("") // no rack
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func (r *fetchRequest) decode(body []byte) (*fetchResponse, error) {
	d := &reading{b: body}
	if got := d.i32(); got != correlation && d.err == nil {
		return nil, errors.New("receive fetch: the answer belongs to another request")
	}
	d.i32() // throttled for, ms
	res := &fetchResponse{body: body}
	if r.version >= 7 {
		if code := d.i16(); code != 0 {
			return &fetchResponse{err: kafkago.Error(code)}, d.err
		}
		d.i32() // session
	}
	if d.i32() != 1 {
		return nil, d.or(protocol.ErrNoTopic)
	}
	d.take(int(d.i16())) // topic
	if d.i32() != 1 {
		return nil, d.or(protocol.ErrNoPartition)
	}
	if p := d.i32(); p != r.partition {
		return nil, d.or(protocol.ErrNoPartition)
	}
	if code := d.i16(); code != 0 {
		res.err = kafkago.Error(code)
	}
	res.highWatermark = d.i64()
	d.i64() // last stable offset
	if r.version >= 5 {
		d.i64() // log start
	}
	if n := d.i32(); n > 0 {
		d.take(int(n) * 16) // aborted transactions
	}
	if r.version >= 11 {
		d.i32() // preferred replica
	}
	if n := d.i32(); n > 0 {
		res.records = d.take(int(n))
	}
	return res, d.err
}

// reading walks over bytes; after the first error everything is zero.
type reading struct {
	b   []byte
	err error
}

var errShort = errors.New("bytes end too soon")

func (d *reading) or(err error) error {
	if d.err != nil {
		return d.err
	}
	return err
}

func (d *reading) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.b) {
		d.err = errShort
		return nil
	}
	// The capacity ends here, so that appending to a value never writes into the next one.
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *reading) i8() int8 {
	if b := d.take(1); b != nil {
		return int8(b[0])
	}
	return 0
}

func (d *reading) i16() int16 {
	if b := d.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (d *reading) i32() int32 {
	if b := d.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (d *reading) i64() int64 {
	if b := d.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// varint is a zigzag varint of Protobuf, which Kafka uses within records.
func (d *reading) varint() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.err = errShort
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes is a varint length and so many bytes; -1 is null.
func (d *reading) bytes() []byte {
	n := d.varint()
	if n == -1 || d.err != nil {
		return nil
	}
	if n < 0 || n > int64(len(d.b)) {
		d.err = errShort
		return nil
	}
	if n == 0 {
		return []byte{}
	}
	return d.take(int(n))
}
