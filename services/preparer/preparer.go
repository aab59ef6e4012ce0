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
package preparer

import (
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

// Preparer handles requests. It is safe for concurrent use.
type Preparer struct {
	publisher Publisher
	received  func(*message.Message) time.Time
	producer  events.Producer
	logger    *slog.Logger
}

// New returns a preparer. received says when the broker got a message; it must say the same each time
// the message is delivered.
func New(p Publisher, received func(*message.Message) time.Time, logger *slog.Logger) *Preparer {
	return &Preparer{
		publisher: p, received: received, logger: logger,
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
	fact, err := codec.ToMessage(request)
	if err != nil {
		return failure.Permanent(err)
	}
	asked, ok := request.Data.(*executionv1.ExecutionRequested)
	if !ok {
		return failure.Permanent(fmt.Errorf("%s is no request: topic %s takes ExecutionRequested", request.Type, events.TopicRequests))
	}

	prepared, failed := prepare(asked, request.Time)
	var outcome proto.Message = prepared
	if failed != nil {
		outcome = failed
	}
	next, err := p.producer.Event(request.Subject, 1, 1, at, outcome)
	if err != nil {
		return failure.Permanent(err)
	}
	next.Traceparent = request.Traceparent
	nextFact, err := codec.ToMessage(next)
	if err != nil {
		return failure.Permanent(err)
	}
	if err := p.publisher.PublishContext(ctx, events.TopicExecutions, fact, nextFact); err != nil {
		return fmt.Errorf("publish facts of %s: %w", request.Subject, err)
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
		return fmt.Errorf("publish work of %s: %w", request.Subject, err)
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
