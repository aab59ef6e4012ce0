package gateway_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

// sealedOutput is an execution with the bytes of "0123456789" ×n, in chunks of different sizes
// up to a bound.
func (s *server) sealedOutput(t *testing.T, n, chunk int) (*story, []byte) {
	story := newStory(t)
	want := bytes.Repeat([]byte("0123456789"), n)
	s.append(story.requested(), story.started())
	for at := 0; at < len(want); {
		end := min(len(want), at+1+rand.IntN(chunk))
		s.append(story.out(at, string(want[at:end])))
		at = end
	}
	s.append(story.exited(0), story.sealed(uint64(len(want))))
	s.store()
	return story, want
}

func TestASealedOutputIsExactAndHasRanges(t *testing.T) {
	t.Parallel()
	s := start(t)
	story, want := s.sealedOutput(t, 10_000, 5000)
	path := "/v1/executions/" + story.id + "/output/stdout"
	a := s.do("GET", path, nil)
	if !bytes.Equal(a.body, want) || a.Header.Get("Content-Type") != "application/octet-stream" || a.ContentLength != int64(len(want)) ||
		a.Header.Get("Accept-Ranges") != "bytes" || a.Header.Get(api.HeaderComplete) != "true" || a.Header.Get(api.HeaderAttempt) != "1" {
		t.Errorf("%d bytes, %v", len(a.body), a.Header)
	}
	for value, part := range map[string]string{
		"bytes=0-9": "0123456789", "bytes=99995-": "56789", "bytes=-5": "56789", "bytes=7-12": "789012", "bytes=99990-200000": "0123456789",
		"bytes=-200000": string(want),
	} {
		a := s.do("GET", path, nil, "Range", value)
		if a.StatusCode != http.StatusPartialContent || string(a.body) != part || !strings.HasSuffix(a.Header.Get("Content-Range"), "/100000") {
			t.Errorf("%s: %d, %d bytes, %s", value, a.StatusCode, len(a.body), a.Header.Get("Content-Range"))
		}
	}
	for range 50 {
		from := rand.IntN(len(want))
		to := from + rand.IntN(len(want)-from)
		if a := s.do("GET", path, nil, "Range", fmt.Sprintf("bytes=%d-%d", from, to)); !bytes.Equal(a.body, want[from:to+1]) {
			t.Errorf("bytes=%d-%d is wrong", from, to)
		}
	}
	for _, value := range []string{"bytes=100000-", "bytes=5-2", "bytes=a-b", "lines=1-2"} {
		s.do("GET", path, nil, "Range", value).problem(t, http.StatusRequestedRangeNotSatisfiable)
	}
	if a := s.do("HEAD", path, nil); a.StatusCode != http.StatusOK || a.ContentLength != int64(len(want)) || len(a.body) != 0 {
		t.Errorf("HEAD: %d, length %d", a.StatusCode, a.ContentLength)
	}
	if a := s.do("GET", "/v1/executions/"+story.id+"/output/stderr", nil); a.StatusCode != http.StatusOK || len(a.body) != 0 || a.ContentLength != 0 {
		t.Errorf("an empty stream: %d %q", a.StatusCode, a.body)
	}
}

func TestGapsAreNamedBeforeTheBody(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested(), story.started(), story.out(0, "0123456789"), story.out(20, "abcdefghij"), story.out(40, "KLMNOPQRST"),
		story.exited(0), story.sealed(55, 30, 40))
	s.store()
	path := "/v1/executions/" + story.id + "/output/stdout"
	a := s.do("GET", path, nil)
	if string(a.body) != "0123456789abcdefghijKLMNOPQRST" || a.Header.Get(api.HeaderMissing) != "10-20,50-55" || a.Header.Get(api.HeaderElided) != "30-40" ||
		a.Header.Get(api.HeaderComplete) != "false" || a.ContentLength != 30 {
		t.Errorf("%q, %v", a.body, a.Header)
	}
	// Ranges count the bytes that exist.
	for value, part := range map[string]string{"bytes=8-11": "89ab", "bytes=-3": "RST", "bytes=10-20": "abcdefghijK"} {
		if a := s.do("GET", path, nil, "Range", value); string(a.body) != part {
			t.Errorf("%s: %q", value, a.body)
		}
	}
}

func TestAnOutputThatGrowsNamesItsGapsBehind(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested(), story.started(), story.out(0, "0123"), story.out(8, "89"))
	s.store()
	a := s.do("GET", "/v1/executions/"+story.id+"/output/stdout", nil, "Range", "bytes=0-1")
	if a.StatusCode != http.StatusOK || string(a.body) != "012389" || a.Header.Get(api.HeaderComplete) != "unknown" || a.Trailer.Get(api.HeaderMissingFound) != "4-8" {
		t.Errorf("%d %q, %v, trailer %v", a.StatusCode, a.body, a.Header, a.Trailer)
	}
	// Of an earlier attempt the row says nothing.
	s.append(story.exited(1), story.sealed(10))
	story.attempt, story.sequence = 2, 0
	s.append(story.started(), story.out(0, "second"))
	s.store()
	a = s.do("GET", "/v1/executions/"+story.id+"/output/stdout?attempt=1", nil)
	if string(a.body) != "012389" || a.Header.Get(api.HeaderComplete) != "unknown" || a.Trailer.Get(api.HeaderMissingFound) != "4-8" || a.Header.Get(api.HeaderAttempt) != "1" {
		t.Errorf("%q, %v, trailer %v", a.body, a.Header, a.Trailer)
	}
	if a = s.do("GET", "/v1/executions/"+story.id+"/output/stdout", nil); string(a.body) != "second" {
		t.Errorf("%q", a.body)
	}
}

// The row says that the bytes are there, and the archive has lost them.
func TestAnArchiveThatLacksBytesBreaksTheConnection(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested(), story.started(), story.out(0, strings.Repeat("a", 100_000)), story.out(100_000, "lost"), story.exited(0), story.sealed(100_004))
	s.store()
	s.change(func() { s.lost[3] = true })
	resp, err := http.Get(s.url + "/v1/executions/" + story.id + "/output/stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || n > 100_000 {
		t.Errorf("%d bytes and error %v", n, err)
	}
}

func TestOutputWaitsForTheRecorder(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	s.append(story.requested(), story.started())
	s.store()
	s.append(story.out(0, "late"), story.exited(0), story.sealed(4))
	s.change(func() { s.projected = len(s.log) })
	go s.store()
	if a := s.do("GET", "/v1/executions/"+story.id+"/output/stdout", nil); string(a.body) != "late" {
		t.Errorf("%q", a.body)
	}
}

func TestEventsAreOneLineEach(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	unknown := story.started()
	unknown.Type, unknown.Data, unknown.Payload = "com.example.Thing.v1", nil, []byte("\x00\xff\n")
	s.append(story.requested(), unknown, story.started(), story.out(0, "a\nb\x00\xff"), story.exited(0), story.sealed(5))
	s.store()
	a := s.do("GET", "/v1/executions/"+story.id+"/events", nil)
	if a.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Error(a.Header)
	}
	var facts []api.Fact
	for lines := bufio.NewScanner(bytes.NewReader(a.body)); lines.Scan(); {
		var f api.Fact
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		facts = append(facts, f)
	}
	if len(facts) != 6 {
		t.Fatalf("%d facts in %s", len(facts), a.body)
	}
	for i, f := range facts {
		if f.Subject != story.id || f.Offset != int64(i) || f.Partition != partition(story.id) || f.Topic != "verbatim.executions" || f.Time == nil {
			t.Errorf("%+v", f)
		}
	}
	if f := facts[1]; f.Name != "com.example.Thing.v1" || string(f.DataBase64) != "\x00\xff\n" || f.Data != nil {
		t.Errorf("an unknown type: %+v", f)
	}
	p, err := facts[3].Payload()
	if err != nil || facts[3].Name != "OutputChunk" || string(p.(*executionv1.OutputChunk).GetData()) != "a\nb\x00\xff" {
		t.Errorf("a chunk: %v, %v", p, err)
	}
}
