//go:build clients

package kafka_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"verbatim.dev/events/kafka"
)

// plainRecord is a record in the words of testdata/client.py; []byte is base64 in JSON and nil is null.
type plainRecord struct {
	Key     []byte        `json:"key"`
	Value   []byte        `json:"value"`
	Headers []plainHeader `json:"headers"`
}

type plainHeader struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// event is a CloudEvent in binary mode with a JSON payload, and headers that are no text.
func event(key string) plainRecord {
	return plainRecord{
		Key: []byte(key), Value: []byte(`{"stream":"STREAM_STDOUT","offset":"0","data":"aMOpbGxvCg=="}`),
		Headers: []plainHeader{
			{"ce_specversion", []byte("1.0")},
			{"ce_id", []byte(key + "/1/client/1")},
			{"ce_source", []byte("urn:somebody:else")},
			{"ce_type", []byte("dev.verbatim.execution.outputchunk.v1")},
			{"content-type", []byte("application/json")},
			{"binary", []byte{0, 0xff, '\n', 0xc3, 0x28}},
			{"empty", []byte{}},
			{"null", nil},
			{"twice", []byte("1")},
			{"twice", []byte("2")},
		},
	}
}

func clusterOfClients(t *testing.T) (c kafka.Config, topic string) {
	t.Helper()
	c = kafka.Config{Brokers: []string{os.Getenv("VERBATIM_TEST_KAFKA")}}
	if os.Getenv("VERBATIM_TEST_PYTHON") == "" {
		t.Fatal("VERBATIM_TEST_PYTHON is empty: use scripts/test-clients")
	}
	if c.Brokers[0] == "" {
		c = startBroker(t).config()
	}
	topic = fmt.Sprintf("clients-%d", time.Now().UnixNano())
	if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: topic, Partitions: 1}}); err != nil {
		t.Fatal(err)
	}
	return c, topic
}

func run(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.Bytes())
	}
	return out
}

func python(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	return run(t, stdin, os.Getenv("VERBATIM_TEST_PYTHON"), append([]string{"testdata/client.py"}, args...)...)
}

func write(t *testing.T, c kafka.Config, topic string, r plainRecord) {
	t.Helper()
	headers := make([]kafka.Header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = kafka.Header(h)
	}
	m := message.NewMessage("", r.Value)
	m.SetContext(kafka.WithRecord(t.Context(), r.Key, headers))
	if err := publisher(t, c, kafka.PublisherOptions{}).Publish(topic, m); err != nil {
		t.Fatal(err)
	}
}

func plain(r kafka.Record) plainRecord {
	p := plainRecord{Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		p.Headers = append(p.Headers, plainHeader(h))
	}
	return p
}

func TestClientPythonReads(t *testing.T) {
	c, topic := clusterOfClients(t)
	want := []plainRecord{event("execution-1"), event("execution-2")}
	for _, r := range want {
		write(t, c, topic, r)
	}
	var got []plainRecord
	if err := json.Unmarshal(python(t, nil, "read", c.Brokers[0], topic, "2"), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("read by kafka-python (-want +got):\n%s", d)
	}
}

func TestClientPythonWrites(t *testing.T) {
	c, topic := clusterOfClients(t)
	want := []plainRecord{event("execution-1"), event("execution-2")}
	for i := range want {
		// kafka-python reads null in a header and refuses to write it.
		want[i].Headers = slices.DeleteFunc(want[i].Headers, func(h plainHeader) bool { return h.Value == nil })
	}
	stdin, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	python(t, stdin, "write", c.Brokers[0], topic)
	var got []plainRecord
	for _, r := range records(t, c, topic, 0) {
		got = append(got, plain(r))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("written by kafka-python (-want +got):\n%s", d)
	}
	m := receive(t, subscribe(t, subscriber(t, c, kafka.SubscriberOptions{Group: topic}), topic))
	if m.UUID != "execution-1/1/client/1" || m.Metadata["ce_source"] != "urn:somebody:else" || !bytes.Equal(m.Payload, want[0].Value) {
		t.Errorf("message %s %v %s", m.UUID, m.Metadata, m.Payload)
	}
	m.Ack()
}

func TestClientKcatReads(t *testing.T) {
	c, topic := clusterOfClients(t)
	r := event("execution-1")
	for i, h := range r.Headers {
		// kcat prints a header up to its first zero byte.
		r.Headers[i].Value = bytes.ReplaceAll(h.Value, []byte{0}, []byte{0xfe})
		if h.Value == nil {
			r.Headers[i].Value = nil
		}
	}
	write(t, c, topic, r)
	out := string(run(t, nil, "kcat", "-b", c.Brokers[0], "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q", "-f", `%k\n%h\n%s\n`))
	// kcat prints the headers as name=value with commas between them, and NULL for null.
	var headers []string
	for _, h := range r.Headers {
		value := string(h.Value)
		if h.Value == nil {
			value = "NULL"
		}
		headers = append(headers, h.Key+"="+value)
	}
	want := "execution-1\n" + strings.Join(headers, ",") + "\n" + string(r.Value) + "\n"
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("read by kcat (-want +got):\n%s", d)
	}
}

func TestClientKcatWrites(t *testing.T) {
	c, topic := clusterOfClients(t)
	args := []string{"-b", c.Brokers[0], "-P", "-t", topic, "-p", "0", "-K", "\t", "-X", "acks=all"}
	want := plainRecord{Key: []byte("execution-1"), Value: []byte(`{"x":"é"}`)}
	for _, h := range event("execution-1").Headers[:5] {
		want.Headers = append(want.Headers, h)
		args = append(args, "-H", h.Key+"="+string(h.Value))
	}
	run(t, []byte("execution-1\t"+string(want.Value)+"\n"), "kcat", args...)
	got := records(t, c, topic, 0)
	if len(got) != 1 {
		t.Fatalf("%d records", len(got))
	}
	if d := cmp.Diff(want, plain(got[0])); d != "" {
		t.Errorf("written by kcat (-want +got):\n%s", d)
	}
}

// A transaction ends with a marker, which has an offset and is no record. Who has read everything before it has read everything.
func TestClientKcatWritesATransaction(t *testing.T) {
	c, topic := clusterOfClients(t)
	run(t, []byte("a\tone\na\ttwo\n"), "kcat", "-b", c.Brokers[0], "-P", "-t", topic, "-p", "0", "-K", "\t", "-X", "transactional.id="+topic)
	admin, err := kafka.NewAdmin(c)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	// The coordinator answers before it has written the markers.
	var ends map[int]int64
	eventually(t, "the log ends with two records and a marker", func() bool {
		ends, err = admin.EndOffsets(t.Context(), topic)
		return err == nil && ends[0] == 3
	})

	reader, err := kafka.NewPartitionReader(c, topic, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	n := 0
	for _, err := range reader.Until(t.Context(), ends[0]) {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n != 2 || reader.Offset() != ends[0] {
		t.Errorf("%d records, and the reader is at %d", n, reader.Offset())
	}

	messages := subscribe(t, subscriber(t, c, kafka.SubscriberOptions{Group: "g", CommitInterval: 10 * time.Millisecond}), topic)
	for range 2 {
		receive(t, messages).Ack()
	}
	eventually(t, "the group is at the end of the log", func() bool {
		committed, err := admin.CommittedOffsets(t.Context(), "g", topic)
		return err == nil && committed[0] == ends[0]
	})
}
