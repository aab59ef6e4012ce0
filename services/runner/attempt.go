package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/outbox"
	"verbatim.dev/services/runner/output"
	"verbatim.dev/services/runner/process"
)

// attempt is one attempt that this runner has.
type attempt struct {
	runner *Runner
	work   events.Event
	spec   *executionv1.Prepared
	key    string
	log    *slog.Logger
	facts  *outbox.Outbox

	// hasSlot and claimed are written before the attempt runs.
	hasSlot, claimed bool

	// cancelled is closed once, after why was written.
	cancelled  chan struct{}
	cancelOnce sync.Once
	why        cancellation

	outcome string // For the metrics and the log.
}

func newAttempt(r *Runner, work events.Event, spec *executionv1.Prepared) *attempt {
	log := r.config.Logger.With("execution", work.Subject, "attempt", work.Attempt)
	return &attempt{
		runner: r, work: work, spec: spec, key: fmt.Sprintf("%s/%d", work.Subject, work.Attempt), log: log,
		cancelled: make(chan struct{}),
		facts: outbox.New(outbox.Config{
			Producer: r.producer, Execution: work.Subject, Attempt: work.Attempt, Traceparent: work.Traceparent,
			Topic: events.TopicExecutions, LimitBytes: outboxBytes,
			Publisher: r.publish, Retried: r.metrics.retries.Inc, Logger: r.config.Logger,
		}),
	}
}

func (a *attempt) cancel(c cancellation) {
	a.cancelOnce.Do(func() {
		a.why = c
		close(a.cancelled)
	})
}

// run is the attempt's life from the claim to its last acknowledged fact. When life ends first, it kills the
// process and says what is not acknowledged.
func (a *attempt) run(life context.Context) {
	sent := make(chan error, 1)
	go func() { sent <- a.facts.Send(life) }()
	if err := a.guard("run", func() { a.live(life) }); err != nil {
		a.outcome = "broken"
	}
	a.facts.Close()
	if err := <-sent; err != nil {
		a.log.ErrorContext(life, "facts are lost", "error", err)
	}
	a.runner.metrics.ended.WithLabelValues(a.outcome).Inc()
	a.log.InfoContext(life, "attempt is over", "outcome", a.outcome)
}

// guard keeps a panic inside the attempt.
func (a *attempt) guard(doing string, do func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("attempt panicked", "doing", doing, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error in the runner: %v", p)
		}
	}()
	do()
	return nil
}

// fact records what happened at a time. It can only fail for a fact that is not valid, which is a defect of
// this package; it is logged, since nothing else may be stopped by it.
func (a *attempt) fact(at time.Time, f proto.Message) {
	if err := a.facts.Add(at, f); err != nil {
		a.log.Error("fact is lost", "fact", string(f.ProtoReflect().Descriptor().Name()), "error", err)
	}
}

// live starts the process, watches it and seals its output.
func (a *attempt) live(life context.Context) {
	where, limits, p, err := a.start()
	defer func() {
		if err := where.remove(); err != nil {
			a.log.WarnContext(life, "working directory is left behind", "error", err)
		}
	}()
	if err != nil {
		a.startFailed(err)
		return
	}
	defer p.Release()
	a.runner.metrics.started.Inc()
	a.fact(p.StartedAt, &executionv1.ProcessStarted{
		Pid: int64(p.PID), ProcessStartedAt: timestamp(p.StartedAt), Host: a.runner.config.Host, Runner: a.runner.config.ID,
	})

	capture := output.New(output.Config{ChunkBytes: a.runner.config.ChunkBytes, FlushInterval: a.runner.config.FlushInterval},
		p.Stdout, p.Stderr, func(c output.Chunk) error { return a.chunk(life, c) })
	var readers, writer sync.WaitGroup
	for _, stream := range []executionv1.Stream{executionv1.Stream_STREAM_STDOUT, executionv1.Stream_STREAM_STDERR} {
		readers.Go(func() { a.read(capture, stream) })
	}
	if p.Stdin != nil {
		writer.Go(func() { _ = a.guard("write stdin", func() { a.feed(p.Stdin) }) })
	}
	drained := make(chan struct{})
	go func() {
		readers.Wait()
		close(drained)
	}()

	w := newWatch(a, p, capture, limits, drained)
	if err := a.guard("watch", func() {
		a.log.InfoContext(life, "process started", "pid", p.PID)
		w.run(life)
	}); err != nil {
		w.giveUp(err)
	}
	<-drained
	writer.Wait()
	a.seal(capture)
}

// chunk passes output on, and waits when there is no room.
func (a *attempt) chunk(life context.Context, c output.Chunk) error {
	a.runner.metrics.captured.WithLabelValues(events.StreamName(c.Stream)).Add(float64(len(c.Data)))
	return a.facts.AddWhenRoom(life, c.CapturedAt, &executionv1.OutputChunk{
		Stream: c.Stream, Offset: c.Offset, CapturedAt: timestamp(c.CapturedAt), Data: c.Data,
	})
}

// read reads one stream to its end and records when that was not possible.
func (a *attempt) read(capture *output.Capture, stream executionv1.Stream) {
	var readErr error
	if err := a.guard("read output", func() { readErr = capture.Read(stream) }); err != nil {
		readErr = &output.ReadError{Stream: stream, Offset: capture.Captured(stream), Cause: err}
	}
	var failed *output.ReadError
	if errors.As(readErr, &failed) {
		a.log.Error("output cannot be read", "stream", events.StreamName(stream), "offset", failed.Offset, "error", failed.Cause)
		a.fact(time.Now(), &executionv1.OutputReadFailed{Stream: stream, Offset: failed.Offset, Cause: oneLine(failed.Cause.Error())})
	}
}

func (a *attempt) seal(capture *output.Capture) {
	seals := capture.Seal()
	a.fact(time.Now(), &executionv1.OutputSealed{Streams: seals})
	for _, s := range seals {
		if s.GetPipeStillHeld() {
			a.log.Warn("another process still holds the pipe, what it writes from now on is not kept", "stream", events.StreamName(s.GetStream()), "captured_bytes", s.GetCapturedBytes())
		}
	}
}

// startFailed records why there is no process, and that there is no output.
func (a *attempt) startFailed(err error) {
	f := &executionv1.StartFailed{Message: oneLine(err.Error()), Host: a.runner.config.Host, Runner: a.runner.config.ID}
	a.outcome = "start_failed"
	var start *process.StartError
	switch {
	case errors.Is(err, errCancelled):
		a.outcome = "cancelled"
		f.Reason = executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED
	case errors.As(err, &start):
		f.Reason, f.Errno = start.Reason, int32(start.Errno)
	}
	a.fact(time.Now(), f)
	a.fact(time.Now(), &executionv1.OutputSealed{Streams: output.EmptySeal()})
	a.log.Info("process was not started", "reason", f.GetReason().String(), "error", err)
}
