package codec_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestEveryEventSurvivesBinaryMode(t *testing.T) {
	t.Parallel()
	samples := eventstest.Samples()
	if len(samples) != len(events.Types()) {
		t.Fatalf("%d samples for %d types", len(samples), len(events.Types()))
	}
	for _, want := range samples {
		headers, value, err := codec.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := codec.Decode(headers, value)
		if err != nil {
			t.Fatalf("%s: %v", want.Type, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s changed on its way (-sent +received):\n%s", want.Type, diff)
		}
	}
}

// An outside producer may write any of the four forms; all must give the same event.
func TestEveryFormGivesTheSameEvent(t *testing.T) {
	t.Parallel()
	for _, want := range eventstest.Samples() {
		headers, value, err := codec.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		asJSON, err := protojson.Marshal(want.Data)
		if err != nil {
			t.Fatal(err)
		}
		document := map[string]any{}
		for name, v := range headers {
			if attribute, ok := strings.CutPrefix(name, "ce_"); ok {
				document[attribute] = v
			}
		}
		document["attempt"] = want.Attempt // An integer attribute.
		structured := func(contentType, member string, payload any) []byte {
			d := maps.Clone(document)
			d["datacontenttype"], d[member] = contentType, payload
			out, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		jsonHeaders := maps.Clone(headers)
		delete(jsonHeaders, "content-type")
		jsonHeaders["Content-Type"] = "application/json; charset=utf-8"
		structuredHeaders := map[string]string{"content-type": "application/cloudevents+json; charset=UTF-8"}

		for form, record := range map[string]struct {
			headers map[string]string
			value   []byte
		}{
			"binary json":           {jsonHeaders, asJSON},
			"structured json":       {structuredHeaders, structured(events.ContentTypeJSON, "data", json.RawMessage(asJSON))},
			"structured json bytes": {structuredHeaders, structured(events.ContentTypeJSON, "data_base64", base64.StdEncoding.EncodeToString(asJSON))},
			"structured protobuf":   {structuredHeaders, structured(events.ContentTypeProtobuf, "data_base64", base64.StdEncoding.EncodeToString(value))},
		} {
			got, err := codec.Decode(record.headers, record.value)
			if err != nil {
				t.Errorf("%s of %s: %v", form, want.Type, err)
				continue
			}
			got.ContentType, got.Payload = want.ContentType, want.Payload
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("%s of %s differs (-binary +%s):\n%s", form, want.Type, form, diff)
			}
		}
	}
}

func TestMalformedRecordsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	chunk := eventstest.Samples()[6]
	headers, value, err := codec.Encode(chunk)
	if err != nil {
		t.Fatal(err)
	}
	with := func(name, v string) map[string]string {
		h := maps.Clone(headers)
		h[name] = v
		return h
	}
	without := func(name string) map[string]string {
		h := maps.Clone(headers)
		delete(h, name)
		return h
	}
	empty, err := proto.Marshal(&executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT})
	if err != nil {
		t.Fatal(err)
	}
	huge, err := proto.Marshal(&executionv1.OutputChunk{Data: make([]byte, events.MaxChunkBytes+1)})
	if err != nil {
		t.Fatal(err)
	}
	wraps, err := proto.Marshal(&executionv1.OutputChunk{Offset: 1<<64 - 2, Data: []byte("abc")})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		headers map[string]string
		value   []byte
		says    string
	}{
		"no headers":           {nil, []byte("hello"), "specversion"},
		"wrong version":        {with("ce_specversion", "0.3"), value, "specversion"},
		"no id":                {without("ce_id"), value, "id is empty"},
		"no source":            {without("ce_source"), value, "source is empty"},
		"no type":              {without("ce_type"), value, "type is empty"},
		"no subject":           {without("ce_subject"), value, "subject"},
		"subject no uuid":      {with("ce_subject", "../../etc/passwd"), value, "partitionkey"},
		"no sequence":          {without("ce_sequence"), value, "sequence"},
		"sequence 0":           {with("ce_sequence", "0"), value, "sequence"},
		"negative sequence":    {with("ce_sequence", "-1"), value, "sequence"},
		"no attempt":           {without("ce_attempt"), value, "attempt"},
		"attempt 0":            {with("ce_attempt", "0"), value, "attempt"},
		"attempt too large":    {with("ce_attempt", "4294967296"), value, "attempt"},
		"bad time":             {with("ce_time", "yesterday"), value, "time"},
		"far time":             {with("ce_time", "9999-01-01T00:00:00Z"), value, "time"},
		"other key":            {with("ce_partitionkey", "x"), value, "partitionkey"},
		"long id":              {with("ce_id", strings.Repeat("x", 1000)), value, "limit"},
		"no content type":      {without("content-type"), value, "content-type"},
		"bad content type":     {with("content-type", ";;"), value, "content-type"},
		"avro":                 {with("content-type", "application/cloudevents+avro"), value, "structured"},
		"xml":                  {with("content-type", "text/xml"), value, "content-type"},
		"no protobuf":          {headers, []byte("\xff\xff\xff"), "payload"},
		"no json":              {with("content-type", "application/json"), []byte("{"), "payload"},
		"empty chunk":          {headers, empty, "data is empty"},
		"huge chunk":           {headers, huge, "limit"},
		"offset wraps":         {headers, wraps, "2^64"},
		"structured no object": {map[string]string{"content-type": "application/cloudevents+json"}, []byte("[1]"), "structured"},
		"structured deep":      {map[string]string{"content-type": "application/cloudevents+json"}, []byte(`{"id":{"a":1}}`), "attribute"},
		"structured both":      {map[string]string{"content-type": "application/cloudevents+json"}, []byte(`{"specversion":"1.0","data":{},"data_base64":""}`), "data_base64"},
		"structured base64":    {map[string]string{"content-type": "application/cloudevents+json"}, []byte(`{"specversion":"1.0","data_base64":"%%"}`), "data_base64"},
	} {
		_, err := codec.Decode(c.headers, c.value)
		if !errors.Is(err, codec.ErrMalformed) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v does not speak of %q", name, err, c.says)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: error text of %d bytes", name, len(err.Error()))
		}
	}
}

func TestUnknownTypesAndEnumValuesSurvive(t *testing.T) {
	t.Parallel()
	headers, _, err := codec.Encode(eventstest.Samples()[6])
	if err != nil {
		t.Fatal(err)
	}
	headers["ce_type"] = "dev.verbatim.execution.SomethingNew.v9"
	headers["content-type"] = "application/x-new"
	e, err := codec.Decode(headers, []byte{0, 1, 2})
	if err != nil || e.Data != nil || !bytes.Equal(e.Payload, []byte{0, 1, 2}) {
		t.Errorf("unknown type: %v, %+v", err, e)
	}

	headers["ce_type"], headers["content-type"] = events.TypeStartFailed, events.ContentTypeJSON
	e, err = codec.Decode(headers, []byte(`{"reason":77,"somethingNew":{"a":1},"message":"m"}`))
	if err != nil || e.Data.(*executionv1.StartFailed).GetReason() != 77 {
		t.Errorf("unknown enum number: %v, %+v", err, e.Data)
	}
	if _, err = codec.Decode(headers, []byte(`{"reason":"START_FAILURE_REASON_NEW","message":"m"}`)); err != nil {
		t.Errorf("unknown enum name: %v", err)
	}
}

func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	t.Parallel()
	e := eventstest.Samples()[6]
	e.Sequence = 0
	if _, _, err := codec.Encode(e); err == nil {
		t.Error("an event without a sequence was encoded")
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range eventstest.Samples() {
		headers, value, err := codec.Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(headers["content-type"], headers["ce_type"], headers["ce_subject"], headers["ce_sequence"], headers["ce_attempt"], headers["ce_time"], value)
	}
	f.Add("application/cloudevents+json", "", "", "", "", "", []byte(`{"specversion":"1.0","id":"x","data":{}}`))
	f.Fuzz(func(t *testing.T, contentType, typ, subject, sequence, attempt, at string, value []byte) {
		e, err := codec.Decode(map[string]string{
			"content-type": contentType, "ce_specversion": "1.0", "ce_id": "i", "ce_source": "/s", "ce_type": typ,
			"ce_subject": subject, "ce_sequence": sequence, "ce_attempt": attempt, "ce_time": at,
		}, value)
		if err != nil {
			return
		}
		headers, again, err := codec.Encode(e)
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		if _, err := codec.Decode(headers, again); err != nil {
			t.Fatalf("encoded but not decoded: %v", err)
		}
	})
}

// Headers whose names differ only in case must give one event, whoever reads them and how often: the row is folded from one reading and
// the archive is filled by another.
func TestNamesThatDifferInCaseGiveOneEvent(t *testing.T) {
	t.Parallel()
	sample := eventstest.Samples()[0]
	headers, value, err := codec.Encode(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, shadows := range []map[string]string{
		{"ce_source": "/right", "CE_SOURCE": "/a", "Ce_Source": "/b", "cE_source": "/c"},
		{"CE_SOURCE": "/right", "Ce_Source": "/b", "cE_source": "/c"},
	} {
		given := maps.Clone(headers)
		delete(given, "ce_source")
		maps.Copy(given, shadows)
		for range 50 {
			e, err := codec.Decode(given, value)
			if err != nil {
				t.Fatal(err)
			}
			if e.Source != "/right" {
				t.Fatalf("of %v the source %q was taken", shadows, e.Source)
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event("019366e0-7c00-7000-8000-000000000001", 1, 7,
		time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), &executionv1.OutputChunk{Stream: executionv1.Stream_STREAM_STDOUT, Data: make([]byte, 64)})
	if err != nil {
		b.Fatal(err)
	}
	headers, value, err := codec.Encode(e)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := codec.Decode(headers, value); err != nil {
			b.Fatal(err)
		}
	}
}
