package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net/http"
	"sync"

	"github.com/cenkalti/backoff/v5"

	"verbatim.dev/services/gateway/api"
)

// errSent ends a read of a body whose request is over.
var errSent = errors.New("the request is over")

// Upload sends bytes for a standard input that are too many for a request, at most events.MaxStdinBytes, and returns what SubmitRequest
// takes in their place. They are never in memory as a whole. When the connection breaks it begins anew if r is an io.Seeker. The
// answer is checked: it must be about what was sent.
func (c *Client) Upload(ctx context.Context, r io.Reader) (api.StdinUpload, error) {
	seeker, again := r.(io.Seeker)
	if again {
		_, err := seeker.Seek(0, io.SeekStart)
		again = err == nil // A pipe may call itself a file.
	}
	return backoff.Retry(ctx, func() (api.StdinUpload, error) {
		if again {
			if _, err := seeker.Seek(0, io.SeekStart); err != nil {
				return api.StdinUpload{}, backoff.Permanent(err)
			}
		}
		out, err := c.uploadOnce(ctx, r, again)
		if err != nil && (!again || !passing(err)) {
			return out, backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithMaxElapsedTime(submitPatience))
}

func (c *Client) uploadOnce(ctx context.Context, r io.Reader, settle bool) (out api.StdinUpload, err error) {
	body := &uploadBody{r: r, digest: sha256.New()}
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/v1/stdin", stream: body}, &out)
	if settle || err == nil {
		// A request that failed may still be reading (net/http, RoundTripper).
		body.end()
	}
	if err != nil {
		return api.StdinUpload{}, err
	}
	if out.SizeBytes != body.size || !bytes.Equal(out.SHA256, body.digest.Sum(nil)) {
		return api.StdinUpload{}, backoff.Permanent(errors.New("the server got other bytes than were sent"))
	}
	return out, nil
}

// uploadBody is a body that nobody reads any more once it has ended. It is no io.Closer: what it reads stays the caller's.
type uploadBody struct {
	mu     sync.Mutex
	r      io.Reader
	digest hash.Hash
	size   uint64
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errSent
	}
	n, err := b.r.Read(p)
	b.digest.Write(p[:n])
	b.size += uint64(n)
	return n, err
}

func (b *uploadBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}
