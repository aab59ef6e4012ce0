// Package router is the frame around every handler: what happens to a message before and after the code
// that understands it, the same in every service.
//
// A handler returns nil, a permanent error (see package failure) or any other error, which is transient.
//
//	handled      → acknowledged
//	permanent    → dead-lettered, bytes and headers unchanged, then acknowledged
//	transient    → tried again in place, with growing pauses, until it works or the message is taken away
//	panic        → permanent; the stack goes to the log, not into the dead letter
//
// A store that is down therefore pauses the partition and dead-letters nothing. When the service stops, or the
// partition is lost, a failing message is given back (Nack) and delivered again later, to whoever owns it then.
// A dead letter that cannot be written is tried again too: no message is acknowledged without having been
// handled or kept. One that is too large for its topic is written without the value, and says so.
//
// A message that its handler claimed (kafka.CommitSync) is delivered once. So it is not tried
// again either: its failure, of whatever kind, is dead-lettered, so that it is seen.
package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/internal/failure"
)

// Config of a service's router.
type Config struct {
	// Name is the service; it labels metrics and names the one that gave up in dead letters.
	Name string
	// Logger gets one line when a message begins to fail and one when it is dead-lettered; nil discards.
	Logger *slog.Logger
	// Registry gets the metrics; several routers may share one. Nil: no metrics are exported.
	Registry prometheus.Registerer
	// DeadLetters takes what cannot be handled.
	DeadLetters message.Publisher
	// DeadLetterTopic defaults to events.TopicDeadletter.
	DeadLetterTopic string
	// CloseTimeout is how long Close waits for running handlers. Default 10 s. It should be longer than
	// the subscribers' DrainTimeout.
	CloseTimeout time.Duration
	// FirstPause and LongestPause bound the pauses between tries. Defaults 50 ms and 10 s.
	FirstPause, LongestPause time.Duration
}

// Validate reports everything wrong with the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("name: is empty"))
	}
	if c.DeadLetters == nil {
		errs = append(errs, errors.New("dead letters: no publisher"))
	}
	if c.CloseTimeout < 0 || c.FirstPause < 0 || c.LongestPause < 0 {
		errs = append(errs, errors.New("close timeout and pauses: must not be negative"))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.DeadLetterTopic == "" {
		c.DeadLetterTopic = events.TopicDeadletter
	}
	if c.CloseTimeout == 0 {
		c.CloseTimeout = 10 * time.Second
	}
	if c.FirstPause == 0 {
		c.FirstPause = 50 * time.Millisecond
	}
	if c.LongestPause == 0 {
		c.LongestPause = 10 * time.Second
	}
	return c
}

// frame holds what the middlewares share.
type frame struct {
	Config
	metrics *metrics
}

// New returns a router with the middlewares; add handlers and run it.
func New(c Config) (*message.Router, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	c = c.withDefaults()
	m, err := newMetrics(c.Registry, c.Name)
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	r, err := message.NewRouter(message.RouterConfig{CloseTimeout: c.CloseTimeout}, quiet(c.Logger))
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	f := &frame{Config: c, metrics: m}
	r.AddMiddleware(
		// Outermost, because it decides what becomes of a message, so it must see the last word of all others.
		f.poison,
		// Around the tries, so that the time is what the message had to wait, pauses included.
		f.measure,
		// Inside the measuring and outside the recovery, so that a panic arrives here as an error.
		f.retry,
		// Innermost, so that nothing between it and the handler can lose a panic.
		f.recoverer,
	)
	return r, nil
}

// quiet drops Watermill's running commentary one level down: its info is our debug.
func quiet(l *slog.Logger) watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(l, map[slog.Level]slog.Level{
		slog.LevelInfo: slog.LevelDebug,
	})
}

// poison dead-letters what failed for good.
func (f *frame) poison(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		produced, err := next(m)
		if err == nil {
			return produced, nil
		}
		claimed := kafka.Claimed(m)
		if !claimed && (takenAway(m) != nil || !failure.IsPermanent(err)) {
			return nil, err
		}
		if dead := f.deadLetter(m, err); dead != nil {
			f.Logger.ErrorContext(m.Context(), "dead letter not written, message is given back",
				f.about(m, "error", err, "dead_letter_error", dead)...)
			return nil, errors.Join(err, dead)
		}
		f.metrics.deadLettered.Inc()
		f.Logger.ErrorContext(m.Context(), "message dead-lettered", f.about(m, "error", err)...)
		return nil, nil
	}
}

// deadLetter writes the dead letter and keeps trying until the message is taken away.
func (f *frame) deadLetter(m *message.Message, cause error) error {
	ctx, cancel := f.until(m)
	defer cancel()
	if kafka.Claimed(m) {
		// Nobody else gets this message any more, so its letter outlives the subscription for a while.
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(context.WithoutCancel(m.Context()), f.CloseTimeout)
		defer stop()
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		letter := kafka.DeadLetter(m, f.Name, cause)
		err := f.publish(ctx, letter)
		if errors.Is(err, kafka.ErrTooLarge) {
			f.Logger.ErrorContext(ctx, "dead letter is too large, it is written without the value", f.about(m, "error", err)...)
			err = f.publish(ctx, kafka.LeaveOut(letter))
		}
		return struct{}{}, err
	}, f.pauses()...)
	return err
}

func (f *frame) publish(ctx context.Context, letter *message.Message) error {
	if p, ok := f.DeadLetters.(interface {
		PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
	}); ok {
		return p.PublishContext(ctx, f.DeadLetterTopic, letter)
	}
	return f.DeadLetters.Publish(f.DeadLetterTopic, letter)
}

// retry tries transient failures again.
func (f *frame) retry(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		try := func() ([]*message.Message, error) {
			produced, err := next(m)
			if err != nil {
				f.metrics.failure(err)
			}
			return produced, err
		}
		produced, err := try()
		if err == nil || final(m, err) || takenAway(m) != nil {
			return produced, err
		}
		f.Logger.WarnContext(m.Context(), "message fails, trying again", f.about(m, "error", err)...)
		return f.again(m, err, try)
	}
}

// final tells whether a failure is not to be tried again.
func final(m *message.Message, err error) bool {
	return failure.IsPermanent(err) || kafka.Claimed(m)
}

// again goes on after the first failure until a try works, fails for good, or the message is taken away.
func (f *frame) again(m *message.Message, last error, try func() ([]*message.Message, error)) ([]*message.Message, error) {
	ctx, cancel := f.until(m)
	defer cancel()
	failures := 0
	produced, err := backoff.Retry(ctx, func() ([]*message.Message, error) {
		if failures++; failures == 1 {
			return nil, last
		}
		var out []*message.Message
		if out, last = try(); last != nil && final(m, last) {
			return nil, backoff.Permanent(last)
		}
		return out, last
	}, f.pauses()...)
	if err != nil {
		return nil, last // rather than "context canceled"
	}
	f.Logger.InfoContext(m.Context(), "message handled after failures", f.about(m, "failures", failures-1)...)
	return produced, nil
}

func (f *frame) pauses() []backoff.RetryOption {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = f.FirstPause, f.LongestPause
	return []backoff.RetryOption{backoff.WithBackOff(b), backoff.WithMaxElapsedTime(0)}
}

// recoverer turns a panic into a permanent error.
func (f *frame) recoverer(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) (produced []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				f.Logger.ErrorContext(m.Context(), "handler panicked", f.about(m, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))...)
				produced, err = nil, failure.Permanent(fmt.Errorf("handler panicked: %v", v))
			}
		}()
		return next(m)
	}
}

// takenAway says why the message is not to be worked on any longer; nil while it is.
func takenAway(m *message.Message) error {
	if err := m.Context().Err(); err != nil {
		return err
	}
	select {
	case <-kafka.Stopping(m.Context()):
		return errStopping
	default:
		return nil
	}
}

var errStopping = errors.New("service is stopping")

// until returns a context that ends when the message is taken away.
func (f *frame) until(m *message.Message) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(m.Context())
	stopping := kafka.Stopping(m.Context())
	if stopping == nil {
		return ctx, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-stopping:
			cancel(errStopping)
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

// about are the attributes that find the message again.
func (f *frame) about(m *message.Message, more ...any) []any {
	attrs := []any{"service", f.Name, "uuid", m.UUID}
	if p, ok := kafka.PositionFromContext(m.Context()); ok {
		attrs = append(attrs, "topic", p.Topic, "partition", p.Partition, "offset", p.Offset)
	}
	return append(attrs, more...)
}
