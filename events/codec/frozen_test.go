package codec_test

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/eventstest"
)

var freeze = flag.Bool("freeze", false, "write frozen files of events that have none; a file that exists is never changed")

// frozen is a record as it once was written. Records like it lie in people's topics and archives, so a
// file is never changed: what is read from it must stay the same for ever.
type frozen struct {
	Headers map[string]string `json:"headers"`
	Value   []byte            `json:"value"`
	Data    json.RawMessage   `json:"data"`
}

func TestFrozenRecordsAreReadAsEver(t *testing.T) {
	t.Parallel()
	for _, sample := range eventstest.Samples() {
		name := strings.TrimPrefix(sample.Type, "dev.verbatim.execution.")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join("..", "testdata", "frozen", name+".json")
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) && *freeze {
				text = write(t, path, sample)
			} else if err != nil {
				t.Fatalf("%v (a new event needs its frozen file: go test ./codec -freeze)", err)
			}
			var record frozen
			if err := json.Unmarshal(text, &record); err != nil {
				t.Fatal(err)
			}
			got, err := codec.Decode(record.Headers, record.Value)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := events.NewPayload(sample.Type)
			if err := protojson.Unmarshal(record.Data, want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.Data, protocmp.Transform()); diff != "" {
				t.Errorf("binary and JSON form of the frozen record differ (-json +binary):\n%s", diff)
			}
			headers, value, err := codec.Encode(got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(record.Headers, headers); diff != "" {
				t.Errorf("headers are written otherwise than frozen:\n%s", diff)
			}
			if string(value) != string(record.Value) {
				t.Error("the value changed")
			}
			again, err := proto.MarshalOptions{Deterministic: true}.Marshal(got.Data)
			if err != nil || string(again) != string(record.Value) {
				t.Errorf("the payload is encoded otherwise than frozen (%v)", err)
			}
		})
	}
}

func write(t *testing.T, path string, e events.Event) []byte {
	headers, value, err := codec.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	data, err := protojson.Marshal(e.Data)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(frozen{headers, value, data}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	return text
}
