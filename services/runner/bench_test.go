package runner_test

import (
	"context"
	"io"
	"log/slog"
	"os/exec"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

// swallow is a log that acknowledges at once and says when an attempt is sealed.
type swallow struct{ sealed chan struct{} }

func (s swallow) PublishContext(_ context.Context, _ string, msgs ...*message.Message) error {
	for _, m := range msgs {
		if m.Metadata["ce_type"] == "dev.verbatim.execution.OutputSealed.v1" {
			s.sealed <- struct{}{}
		}
	}
	return nil
}

func benchRunner(b *testing.B) (*runner.Runner, swallow) {
	b.Helper()
	s := swallow{make(chan struct{}, 1024)}
	r, err := runner.New(runner.Config{ID: "r1", DataDir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)}, s,
		func(context.Context, *message.Message) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.Stop(context.Background()) })
	return r, s
}

// BenchmarkShortCommand is one short command after another; BareShortCommand is the same with os/exec.
func BenchmarkShortCommand(b *testing.B) {
	r, s := benchRunner(b)
	for b.Loop() {
		m, _ := prepared(b, &executionv1.Prepared{Argv: []string{"true"}})
		if err := r.Handle(m); err != nil {
			b.Fatal(err)
		}
		<-s.sealed
	}
}

func BenchmarkBareShortCommand(b *testing.B) {
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), "true")
		cmd.Dir = b.TempDir()
		if _, err := cmd.CombinedOutput(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput is 256 MiB of output up to its acknowledgement; BareOutput is the same through a pipe to nowhere.
func BenchmarkOutput(b *testing.B) {
	r, s := benchRunner(b)
	b.SetBytes(256 << 20)
	for b.Loop() {
		m, _ := prepared(b, whole(shell(`head -c 268435456 /dev/zero`)))
		if err := r.Handle(m); err != nil {
			b.Fatal(err)
		}
		<-s.sealed
	}
}

func BenchmarkBareOutput(b *testing.B) {
	b.SetBytes(256 << 20)
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), "sh", "-c", `head -c 268435456 /dev/zero`)
		cmd.Stdout = struct{ io.Writer }{io.Discard}
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}
