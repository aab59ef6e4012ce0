// Package preparer turns requests into launch specs. For each ExecutionRequested it writes, in this
// order,
//
//  1. the request itself to the log of facts, unchanged (same id, same bytes): the log then tells the
//     whole story, and a request is accepted by one write to one topic;
//  2. Prepared, or PreparationFailed with the reason, to the log of facts;
//  3. the same Prepared to the work topic, where a runner takes it.
//
// Killed anywhere between, it does the same again when the request is redelivered, with the same ids
// and the same bytes: all that an event carries comes from the request and from its place in Kafka.
//
// A RetryRequested gives the Prepared of a further attempt in the same way; it is itself no fact.
//
// A request that does not fit into the log, as it is or as a Prepared, is dead-lettered, and only PreparationFailed is written.
//
// A request that waited for too long is refused: others have said by then that it failed, and somebody may have asked again.
package preparer

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/failure"
	"verbatim.dev/services/internal/secret"
)

// Publisher writes messages to a topic. It returns nil only when every message is kept, and the same
// message may be written again.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Config says how long things may wait.
type Config struct {
	// PrepareWithin is how old a request may be. 0: any age.
	PrepareWithin time.Duration
	// StartWithin is how long a runner may take to start what was prepared. 0: any time.
	StartWithin time.Duration
	// Now is time.Now by default.
	Now func() time.Time
}

// Preparer handles requests. It is safe for concurrent use.
type Preparer struct {
	config    Config
	publisher Publisher
	received  func(*message.Message) time.Time
	producer  events.Producer
	logger    *slog.Logger
	retries   *once
}

// New returns a preparer. received says when the broker got a message; it must say the same each time
// the message is delivered.
func New(c Config, p Publisher, received func(*message.Message) time.Time, logger *slog.Logger) *Preparer {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Preparer{
		config: c, publisher: p, retries: newOnce(), received: received, logger: logger,
		producer: events.Producer{Name: "preparer", Source: "/verbatim/preparer"},
	}
}

// Handle prepares one request. An error that is not permanent means that nothing is lost and that the
// message is to be delivered again.
func (p *Preparer) Handle(m *message.Message) error {
	ctx := m.Context()
	request, err := codec.FromMessage(m)
	if err != nil {
		return failure.Permanent(err)
	}
	at := p.received(m)
	if request.Time.IsZero() {
		// The same fact must have the same time whoever reads it.
		request.Time = at
	}
	switch asked := request.Data.(type) {
	case *executionv1.ExecutionRequested:
		fact, err := codec.ToMessage(request)
		if err != nil {
			return failure.Permanent(err)
		}
		return p.prepare(ctx, request, asked, request.Time, 1, at, fact)
	case *executionv1.RetryRequested:
		// Two recorders may have asked in the same moment. One launch spec in the queue is enough: two runners could take two.
		return p.retries.do(request.ID, func() error {
			return p.prepare(ctx, request, asked.GetRequest(), asked.GetRequestedAt().AsTime(), request.Attempt, at)
		})
	default:
		return failure.Permanent(fmt.Errorf("%s is no request: topic %s takes ExecutionRequested and RetryRequested", request.Type, events.TopicRequests))
	}
}

// clocksAgree is how far the time of a request may be from the broker's to count as when it came.
const clocksAgree = 5 * time.Minute

// cameAt is when a request came, the same for each of its records: a broker that dies before it acknowledges gets the request once more, and
// has another time for that. So it is the request's own time, unless somebody's clock is wrong; then it is when the broker got it.
func cameAt(request events.Event, received time.Time) time.Time {
	if received.Sub(request.Time).Abs() > clocksAgree {
		return received
	}
	return request.Time
}

// prepare says what becomes of an attempt, after other facts, and hands it to the runners. at is when the broker got the request.
func (p *Preparer) prepare(ctx context.Context, request events.Event, asked *executionv1.ExecutionRequested, requestedAt time.Time, attempt uint32, at time.Time, facts ...*message.Message) error {
	prepared, failed := prepare(asked, requestedAt)
	came := cameAt(request, at)
	if within := p.config.PrepareWithin; within > 0 && p.config.Now().Sub(at) > within {
		prepared, failed = nil, &executionv1.PreparationFailed{
			Reason:  executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_EXPIRED,
			Message: fmt.Sprintf("nobody prepared it within %s", within),
		}
	}
	if prepared != nil && p.config.StartWithin > 0 {
		prepared.StartBy = timestamppb.New(came.Add(p.config.StartWithin))
	}
	var outcome proto.Message = prepared
	if failed != nil {
		outcome = failed
	}
	next, err := p.producer.Event(request.Subject, attempt, 1, came, outcome)
	if err != nil {
		return failure.Permanent(err)
	}
	next.Traceparent = request.Traceparent
	nextFact, err := codec.ToMessage(next)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := p.publisher.PublishContext(ctx, events.TopicExecutions, append(facts, nextFact)...); err != nil {
		err = failure.Publishing(fmt.Errorf("publish facts of %s: %w", request.Subject, err))
		if failure.IsPermanent(err) {
			return cmp.Or(p.tooLarge(ctx, next), err)
		}
		return err
	}
	if failed != nil {
		p.logger.InfoContext(ctx, "preparation failed", "execution_id", request.Subject, "reason", failed.GetReason().String())
		return nil
	}
	work, err := codec.ToMessage(next)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := p.publisher.PublishContext(ctx, events.TopicWork, work); err != nil {
		return failure.Publishing(fmt.Errorf("publish work of %s: %w", request.Subject, err))
	}
	return nil
}

// tooLarge says in the place of an outcome that it, or the request, does not fit into the log. Nobody else would say how the execution ended:
// the request is a dead letter.
func (p *Preparer) tooLarge(ctx context.Context, outcome events.Event) error {
	failed, err := p.producer.Event(outcome.Subject, outcome.Attempt, outcome.Sequence, outcome.Time, &executionv1.PreparationFailed{
		Reason:  executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_INVALID_PARAMETERS,
		Message: fmt.Sprintf("the request is too large: a record has at most %d bytes", events.MaxRecordBytes),
	})
	if err != nil {
		return failure.Permanent(err)
	}
	failed.Traceparent = outcome.Traceparent
	fact, err := codec.ToMessage(failed)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := p.publisher.PublishContext(ctx, events.TopicExecutions, fact); err != nil {
		return failure.Publishing(fmt.Errorf("publish that %s failed: %w", outcome.Subject, err))
	}
	return nil
}

// prepare resolves a request. It is pure.
func prepare(r *executionv1.ExecutionRequested, requestedAt time.Time) (*executionv1.Prepared, *executionv1.PreparationFailed) {
	fail := func(reason executionv1.PreparationFailureReason, format string, args ...any) (*executionv1.Prepared, *executionv1.PreparationFailed) {
		return nil, &executionv1.PreparationFailed{Reason: reason, Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "\uFFFD")}
	}
	const invalid = executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_INVALID_PARAMETERS
	var command *executionv1.Command
	switch what := r.GetWhat().(type) {
	case *executionv1.ExecutionRequested_Command:
		command = what.Command
	case *executionv1.ExecutionRequested_Action:
		return fail(executionv1.PreparationFailureReason_PREPARATION_FAILURE_REASON_UNKNOWN_ACTION,
			"action %q is not known here; request a command instead", what.Action.GetName())
	default:
		return fail(invalid, "the request names neither a command nor an action")
	}
	argv := command.GetArgv()
	switch {
	case len(argv) == 0 || argv[0] == "":
		return fail(invalid, "the command is empty: it needs at least a program")
	case r.GetTimeout() != nil && (r.GetTimeout().CheckValid() != nil || r.GetTimeout().AsDuration() <= 0):
		return fail(invalid, "timeout is %s, it must be positive", r.GetTimeout().AsDuration())
	case r.GetGrace() != nil && (r.GetGrace().CheckValid() != nil || r.GetGrace().AsDuration() < 0):
		return fail(invalid, "grace is %s, it must not be negative", r.GetGrace().AsDuration())
	case command.GetDirectory() != "" && !strings.HasPrefix(command.GetDirectory(), "/"):
		return fail(invalid, "directory %q is not absolute", command.GetDirectory())
	}
	for _, a := range append(slices.Clone(argv), command.GetDirectory()) {
		if strings.ContainsRune(a, 0) {
			return fail(invalid, "the command holds a NUL byte, which no program can be given")
		}
	}
	if err := events.CheckLimits(r.GetLimits()); err != nil {
		return fail(invalid, "limits: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	// In order, so that the same request always fails with the same words.
	for _, name := range slices.Sorted(maps.Keys(command.GetEnvironment())) {
		value := command.GetEnvironment()[name]
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fail(invalid, "environment variable %q cannot be set: a name is not empty and holds no '=', and neither name nor value a NUL byte", name)
		}
	}
	if err := events.ValidateOutputLimit(r.GetOutputLimit()); err != nil {
		return fail(invalid, "%v", err)
	}
	if err := events.CheckRetry(r.GetRetry()); err != nil {
		return fail(invalid, "retry: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if err := secret.CheckFiles(r.GetSecrets()); err != nil {
		return fail(invalid, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	switch given := r.GetStdinUpload() != nil; {
	case given && len(r.GetStdin()) > 0:
		return fail(invalid, "the request has both stdin and an upload for it")
	case len(r.GetSecrets()) > 0 && (given || len(r.GetStdin()) > 0):
		return fail(invalid, "the request has both secrets and stdin: secrets reach the process on its standard input")
	}
	return &executionv1.Prepared{
		Argv: argv, Environment: command.GetEnvironment(), Directory: command.GetDirectory(), Stdin: r.GetStdin(),
		Timeout: r.GetTimeout(), Grace: r.GetGrace(), Labels: r.GetLabels(),
		RequestedAt: timestamppb.New(requestedAt), RequestedBy: r.GetRequestedBy(), Limits: r.GetLimits(),
		Secrets: r.GetSecrets(), StdinUpload: r.GetStdinUpload(),
		OutputLimit: r.GetOutputLimit(),
	}, nil
}
