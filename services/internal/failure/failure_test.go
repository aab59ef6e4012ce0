package failure_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"verbatim.dev/services/internal/failure"
)

func TestPermanentIsSeenThroughWrapping(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("handle message: %w", failure.Permanent(fmt.Errorf("decode: %w", io.ErrUnexpectedEOF)))
	if !failure.IsPermanent(err) {
		t.Error("a wrapped permanent error is not permanent")
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is gone")
	}
	if want := "handle message: decode: unexpected EOF"; err.Error() != want {
		t.Errorf("reads %q, want %q", err, want)
	}
}

func TestEverythingElseIsTransient(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, io.EOF, fmt.Errorf("away: %w", io.EOF), failure.Permanent(nil)} {
		if failure.IsPermanent(err) {
			t.Errorf("%v is permanent", err)
		}
	}
	if !failure.IsPermanent(errors.Join(io.EOF, failure.Permanent(io.EOF))) {
		t.Error("a permanent error among joined ones is not seen")
	}
}
