package protocol_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"verbatim.dev/services/runner/protocol"
)

func pair(t *testing.T) (*protocol.Conn, *protocol.Conn) {
	t.Helper()
	a, f, err := protocol.Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := protocol.New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// Messages of every size arrive whole and in order, each with its own files.
func TestMessagesAndFiles(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	var sent []protocol.Message
	for i := range 60 {
		m := protocol.Message{Kind: protocol.Start, Number: uint64(i), Command: &protocol.Command{Argv: []string{strings.Repeat("x", i*i*300)}}}
		if i%3 > 0 {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := w.WriteString(strings.Repeat("y", i)); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			m.Files = []*os.File{r}
		}
		sent = append(sent, m)
	}
	failed := make(chan error, 1)
	go func() {
		for _, m := range sent {
			if err := a.Send(m); err != nil {
				failed <- err
				break
			}
		}
		failed <- a.Close()
	}()
	for i, want := range sent {
		got, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(protocol.Message{}, "Files")); diff != "" {
			t.Fatal(diff)
		}
		if len(got.Files) != len(want.Files) {
			t.Fatalf("message %d has %d files", i, len(got.Files))
		}
		for _, f := range got.Files {
			if text, err := io.ReadAll(f); err != nil || len(text) != i {
				t.Errorf("message %d: file of %d bytes, %v", i, len(text), err)
			}
			_ = f.Close()
		}
	}
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}
