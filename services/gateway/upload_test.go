package gateway_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/gateway/fleet"
)

const bytesAsTheyAre = "application/octet-stream"

// noise is bytes that no compression makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestAnUploadIsInTheLogWhereTheAnswerSays(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"nothing": 0, "a byte": 1, "a part": 1 << 20, "some parts": 5<<20 + 1, "all that is allowed": events.MaxStdinBytes} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, data := start(t), noise(size)
			// Without a length it comes in chunks.
			for _, body := range []io.Reader{bytes.NewReader(data), io.MultiReader(bytes.NewReader(data))} {
				before := int64(len(s.stdin)) + 7
				a := s.do("POST", "/v1/stdin", body, "Content-Type", bytesAsTheyAre)
				var u api.StdinUpload
				if err := json.Unmarshal(a.body, &u); err != nil || a.StatusCode != http.StatusCreated {
					t.Fatalf("%d %s", a.StatusCode, a.body)
				}
				digest := sha256.Sum256(data)
				if u.SizeBytes != uint64(size) || !bytes.Equal(u.SHA256, digest[:]) || u.StartOffset != before || u.EndOffset != int64(len(s.stdin))+7 {
					t.Fatalf("%+v", u)
				}
				var got []byte
				for _, m := range s.stdin[u.StartOffset-7:] {
					e, err := codec.FromMessage(m)
					if err != nil {
						t.Fatal(err)
					}
					part := e.Data.(*executionv1.StdinPart)
					if e.Subject != u.Upload || part.GetOffset() != uint64(len(got)) || m.Metadata["ce_partitionkey"] != u.Upload {
						t.Fatalf("%s at %d after %d bytes", e.ID, part.GetOffset(), len(got))
					}
					got = append(got, part.GetData()...)
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("%d bytes in the log, want %d", len(got), size)
				}
			}
		})
	}
}

func TestWhatIsNoUploadIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.do("POST", "/v1/stdin", "x", "Content-Type", "application/json").problem(t, http.StatusUnsupportedMediaType, "octet-stream")
	large := noise(events.MaxStdinBytes + 1)
	s.do("POST", "/v1/stdin", bytes.NewReader(large), "Content-Type", bytesAsTheyAre).problem(t, http.StatusRequestEntityTooLarge, "67108864")
	s.do("POST", "/v1/stdin", io.MultiReader(bytes.NewReader(large)), "Content-Type", bytesAsTheyAre).problem(t, http.StatusRequestEntityTooLarge, "67108864")
	s.do("GET", "/v1/stdin", nil).problem(t, http.StatusMethodNotAllowed)
	// A large request of another kind is what it was.
	s.do("POST", "/v1/executions", bytes.NewReader(large[:20_000_000]), "Content-Type", "application/json").problem(t, http.StatusRequestEntityTooLarge)
	s.change(func() { s.kafkaAway = errors.New("no broker") })
	s.do("POST", "/v1/stdin", "x", "Content-Type", bytesAsTheyAre).problem(t, http.StatusServiceUnavailable, "again")
}

// An upload of any size holds a fixed part of what all bodies may hold, and gives it back.
func TestManyUploadsAtOnceAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *gateway.Config) { c.MaxBody = 1 << 20 }) // 8 MiB for all: one upload.
	body, sending := io.Pipe()
	done := make(chan answer)
	go func() { done <- s.do("POST", "/v1/stdin", body, "Content-Type", bytesAsTheyAre) }()
	if _, err := sending.Write(noise(4<<20 + 1)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for holds := false; !holds; <-time.After(time.Millisecond) { // Its first parts are in the log: it has what it holds.
		s.change(func() { holds = len(s.stdin) > 0 })
		if time.Now().After(deadline) {
			t.Fatal("nothing of the upload is in the log")
		}
	}
	for s.do("POST", "/v1/stdin", "x", "Content-Type", bytesAsTheyAre).StatusCode != http.StatusServiceUnavailable {
		if time.Now().After(deadline) {
			t.Fatal("another upload was taken")
		}
	}
	sending.Close()
	if a := <-done; a.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	for s.do("POST", "/v1/stdin", "x", "Content-Type", bytesAsTheyAre).StatusCode != http.StatusCreated {
		if time.Now().After(deadline) {
			t.Fatal("the room of an upload is not given back")
		}
	}
}

func TestARequestCarriesAnUploadOrSecretsAsTheyAre(t *testing.T) {
	t.Parallel()
	s := start(t)
	file := base64.StdEncoding.EncodeToString([]byte("age-encryption.org/v1\n-> X25519 x"))
	digest := base64.StdEncoding.EncodeToString(make([]byte, 32))
	upload := object{"upload": newStory(t).id, "start_offset": 3, "end_offset": 9, "size_bytes": 20, "sha256": digest}
	ask := func(more object) answer {
		r := command("true")
		for k, v := range more {
			r[k] = v
		}
		return s.do("POST", "/v1/executions", r)
	}
	for _, more := range []object{{"stdin_upload": upload}, {"secrets": object{"TOKEN": file}}} {
		if a := ask(more); a.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
	}
	read := func(i int) *executionv1.ExecutionRequested {
		e, err := codec.FromMessage(s.requests[i])
		if err != nil {
			t.Fatal(err)
		}
		return e.Data.(*executionv1.ExecutionRequested)
	}
	if u := read(0).GetStdinUpload(); u.GetUpload() != upload["upload"] || u.GetStartOffset() != 3 || u.GetEndOffset() != 9 || u.GetSizeBytes() != 20 || len(u.GetSha256()) != 32 {
		t.Errorf("%v", u)
	}
	if got := string(read(1).GetSecrets()["TOKEN"]); !strings.HasPrefix(got, "age-encryption.org/v1\n") {
		t.Errorf("%q", got)
	}
	wrong := func(field string, value any) object {
		u := object{}
		for k, v := range upload {
			u[k] = v
		}
		u[field] = value
		return object{"stdin_upload": u}
	}
	for says, more := range map[string]object{
		"not both":                {"stdin": "eA==", "stdin_upload": upload},
		"leave out stdin":         {"secrets": object{"TOKEN": file}, "stdin_upload": upload},
		"secret TOKEN is no age":  {"secrets": object{"TOKEN": "aHVudGVyMg=="}},
		"a secret's name":         {"secrets": object{"hunter2-hunter2": file}},
		"stdin_upload.upload":     wrong("upload", "x"),
		"offsets":                 wrong("end_offset", 2),
		"stdin_upload.size_bytes": wrong("size_bytes", events.MaxStdinBytes+1),
		"stdin_upload.sha256":     wrong("sha256", "eA=="),
	} {
		a := ask(more)
		a.problem(t, http.StatusUnprocessableEntity, says)
		if strings.Contains(string(a.body), "hunter2") || strings.Contains(string(a.body), "aHVudGVyMg") {
			t.Errorf("the answer shows what may be a value: %s", a.body)
		}
	}
}

func TestRunnersAreListed(t *testing.T) {
	t.Parallel()
	known := fleet.New()
	s := startWith(t, func(d *gateway.Deps) { d.Fleet = known })
	if a := s.do("GET", "/v1/runners", nil); a.StatusCode != http.StatusOK || strings.TrimSpace(string(a.body)) != `{"runners":[]}` && !strings.Contains(string(a.body), `"runners":[]`) {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}.Event("r1", 0, 1, time.Now(), &executionv1.RunnerHeartbeat{
		Runner: "r1", Host: "h1", Slots: 3, Version: "v", StartedAt: timestamppb.Now(), Running: []*executionv1.RunningAttempt{{Execution: newStory(t).id, Attempt: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	known.Take(e, time.Now())
	var got api.RunnersResponse
	a := s.do("GET", "/v1/runners", nil)
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Runners) != 1 {
		t.Fatalf("%v: %s", err, a.body)
	}
	if r := got.Runners[0]; r.Runner != "r1" || r.State != api.RunnerReady || !r.Lives() || r.Slots != 3 || len(r.Running) != 1 || r.Running[0].Attempt != 1 {
		t.Errorf("%+v", r)
	}
}
