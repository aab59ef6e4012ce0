package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway/api"
)

// keep answers an upload as the gateway does.
func keep(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Type") != "application/octet-stream" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	digest := sha256.Sum256(data)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(api.StdinUpload{Upload: id, StartOffset: 1, EndOffset: 2, SizeBytes: uint64(len(data)), SHA256: digest[:]})
}

// halfway breaks off in the middle of a body.
func halfway(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 3<<20)
	panic(http.ErrAbortHandler)
}

func TestAnUploadIsSentAgainFromItsBeginning(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<19) // 8 MiB
	c, s := serve(t, halfway, refuse(http.StatusServiceUnavailable, api.Problem{}), keep)
	u, err := c.Upload(t.Context(), bytes.NewReader(data))
	if want := sha256.Sum256(data); err != nil || u.SizeBytes != uint64(len(data)) || !bytes.Equal(u.SHA256, want[:]) || u.EndOffset != 2 {
		t.Fatalf("%+v, %v", u, err)
	}
	if n := len(s.seen()); n != 3 {
		t.Errorf("%d requests", n)
	}
}

func TestAnUploadOfAPipeIsSentOnce(t *testing.T) {
	t.Parallel()
	c, s := serve(t, halfway, keep)
	if _, err := c.Upload(t.Context(), io.MultiReader(bytes.NewReader(make([]byte, 8<<20)))); err == nil || len(s.seen()) != 1 {
		t.Errorf("%d requests, %v", len(s.seen()), err)
	}
	c, _ = serve(t, keep)
	if u, err := c.Upload(t.Context(), io.MultiReader(strings.NewReader("once"))); err != nil || u.SizeBytes != 4 {
		t.Errorf("%+v, %v", u, err)
	}
	// What cannot be read is no upload.
	torn := errors.New("torn")
	if _, err := c.Upload(t.Context(), io.MultiReader(strings.NewReader("x"), failing{torn})); !errors.Is(err, torn) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestAnUploadThatArrivedOtherwiseIsNone(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader("other bytes"))
		keep(w, r)
	})
	if _, err := c.Upload(t.Context(), strings.NewReader("these bytes")); err == nil || !strings.Contains(err.Error(), "other bytes") {
		t.Errorf("%v", err)
	}
}

func TestRunnersAreListed(t *testing.T) {
	t.Parallel()
	c, s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"runners":[{"runner":"r1","state":"cordoned","age_recipient":"age1x"},{"runner":"r2","state":"silent"}]}`)
	})
	runners, err := c.Runners(t.Context())
	if err != nil || len(runners) != 2 || !runners[0].Lives() || runners[1].Lives() || runners[0].AgeRecipient != "age1x" || s.seen()[0].URL.Path != "/v1/runners" {
		t.Errorf("%+v, %v", runners, err)
	}
	away, err := client.New("http://127.0.0.1:1", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := away.Runners(t.Context()); err == nil {
		t.Error("nobody there, and no error")
	}
}
