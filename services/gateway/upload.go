package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/danielgtaylor/huma/v2"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/secret"
)

const (
	// uploadAhead is how many parts are read before they are written together.
	uploadAhead = 4
	// uploadMemory is what one upload may hold: the parts, and as much again on their way to the log.
	uploadMemory = 2 * uploadAhead * events.MaxChunkBytes
	// uploadTimeout is what a client has to send all of it.
	uploadTimeout = 10 * time.Minute
)

const uploadPath = "/v1/stdin"

// registerUpload adds the one route that takes no JSON: its body is never in memory as a whole.
func (g *Gateway) registerUpload(a huma.API) {
	g.routes.HandleFunc("POST "+uploadPath, func(w http.ResponseWriter, r *http.Request) {
		ref, err := g.upload(r)
		if err != nil {
			writeProblem(w, err)
			return
		}
		writeCreated(w, ref)
	})
	schemas := a.OpenAPI().Components.Schemas
	a.OpenAPI().AddOperation(&huma.Operation{
		OperationID: "upload", Method: http.MethodPost, Path: uploadPath, Summary: "Upload a large standard input",
		Description: "Takes the bytes as they are. The answer is what `stdin_upload` of an execution's request wants.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}},
		Responses: map[string]*huma.Response{"201": {
			Description: http.StatusText(http.StatusCreated),
			Content:     map[string]*huma.MediaType{"application/json": {Schema: huma.SchemaFromType(schemas, reflect.TypeFor[api.StdinUpload]())}},
		}},
	})
}

// upload writes a body to the log in parts. What was written when it fails is never asked for, and goes with the topic's retention.
func (g *Gateway) upload(r *http.Request) (api.StdinUpload, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/octet-stream" {
		return api.StdinUpload{}, problem(http.StatusUnsupportedMediaType, "the bytes are taken as they are: Content-Type: application/octet-stream")
	}
	id, err := events.NewExecutionID() // A UUIDv7 like any other.
	if err != nil {
		return api.StdinUpload{}, err
	}
	partition := kafka.PartitionFor([]byte(id), g.stdinPartitions)
	start, err := g.stdinEnd(r.Context(), partition)
	if err != nil {
		return api.StdinUpload{}, err
	}
	u := &uploading{g: g, id: id, digest: sha256.New()}
	if err := u.copy(r.Context(), r.Body); err != nil {
		return api.StdinUpload{}, err
	}
	end, err := g.stdinEnd(r.Context(), partition)
	if err != nil {
		return api.StdinUpload{}, err
	}
	g.c.Logger.DebugContext(r.Context(), "standard input was uploaded", "upload", id, "bytes", u.size)
	return api.StdinUpload{Upload: id, StartOffset: start, EndOffset: end, SizeBytes: u.size, SHA256: u.digest.Sum(nil)}, nil
}

func (g *Gateway) stdinEnd(request context.Context, partition int) (int64, error) {
	ctx, cancel := context.WithTimeout(request, publishTimeout)
	defer cancel()
	for {
		ends, err := g.d.Offsets.EndOffsets(ctx, events.TopicStdin)
		if err == nil {
			return ends[partition], nil
		}
		// A partition whose leader has just changed answers in a moment, and the body cannot always be sent again.
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return 0, g.unavailable(request, "Kafka does not answer; send it again", err)
		}
	}
}

// uploading is one upload under way.
type uploading struct {
	g       *Gateway
	id      string
	digest  hash.Hash
	size    uint64
	parts   uint64
	waiting []*message.Message
}

func (u *uploading) copy(ctx context.Context, body io.Reader) error {
	for {
		part := make([]byte, events.MaxChunkBytes)
		n, err := io.ReadFull(body, part)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return problem(http.StatusBadRequest, "the body ended early")
		}
		if u.size+uint64(n) > events.MaxStdinBytes {
			return problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("standard input may have %d bytes", events.MaxStdinBytes))
		}
		if n > 0 {
			if err := u.add(part[:n]); err != nil {
				return err
			}
		}
		if ended || len(u.waiting) == uploadAhead {
			if err := u.flush(ctx); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
	}
}

func (u *uploading) add(data []byte) error {
	u.parts++
	e, err := producer.Event(u.id, 0, u.parts, time.Now(), &executionv1.StdinPart{Offset: u.size, Data: data})
	if err != nil {
		return err
	}
	e.Data = nil // The payload has the bytes.
	m, err := codec.ToMessage(e)
	if err != nil {
		return err
	}
	u.digest.Write(data)
	u.size += uint64(len(data))
	u.waiting = append(u.waiting, m)
	return nil
}

func (u *uploading) flush(request context.Context) error {
	if len(u.waiting) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(request, publishTimeout)
	defer cancel()
	err := u.g.d.Publisher.PublishContext(ctx, events.TopicStdin, u.waiting...)
	u.waiting = nil
	if err != nil {
		return u.g.unavailable(request, "Kafka did not take a part in time; send all of it again", err)
	}
	return nil
}

// upload checks where an uploaded standard input is said to lie.
func (v *validation) upload(r api.SubmitRequest) *executionv1.StdinUpload {
	u := r.StdinUpload
	if u == nil {
		return nil
	}
	if len(r.Stdin) > 0 {
		v.bad("body.stdin_upload", "give either stdin or stdin_upload, not both")
	}
	if _, err := events.ParseExecutionID(u.Upload); err != nil {
		v.bad("body.stdin_upload.upload", "is no id that POST "+uploadPath+" answers")
	}
	if u.StartOffset < 0 || u.EndOffset < u.StartOffset {
		v.bad("body.stdin_upload", "its offsets are none")
	}
	if u.SizeBytes > events.MaxStdinBytes {
		v.bad("body.stdin_upload.size_bytes", fmt.Sprintf("%d bytes, the limit is %d", u.SizeBytes, events.MaxStdinBytes))
	}
	if len(u.SHA256) != sha256.Size {
		v.bad("body.stdin_upload.sha256", "is no SHA-256")
	}
	return &executionv1.StdinUpload{
		Upload: u.Upload, StartOffset: u.StartOffset, EndOffset: u.EndOffset, SizeBytes: u.SizeBytes, Sha256: u.SHA256,
	}
}

// secrets checks them without looking into them: only a runner can.
func (v *validation) secrets(r api.SubmitRequest) {
	if err := secret.CheckFiles(r.Secrets); err != nil {
		v.bad("body.secrets", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if len(r.Secrets) > 0 && (len(r.Stdin) > 0 || r.StdinUpload != nil) {
		v.bad("body.secrets", "the process gets secrets on its standard input: leave out stdin")
	}
}

// writeCreated answers with what was made.
func writeCreated(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(v) // The caller is gone; nobody is left to tell.
}
