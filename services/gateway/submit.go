package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/api"
)

// Limits of a request. The launch spec that the preparer makes of it, with attributes and a batch around
// it, must fit into one record of Kafka.
const (
	maxRequestBytes = events.MaxRecordBytes - 512<<10
	maxStdinBytes   = events.MaxInlineStdinBytes
	maxLabels       = 64
	maxLabelName    = 63
	maxLabelValue   = 256
	maxRequestedBy  = 256
	maxReason       = 4 << 10
)

// publishTimeout is how long Kafka may take to acknowledge before the client is told to come back.
const publishTimeout = 8 * time.Second

// maxAhead is how far a client's clock may be ahead of this one's.
const maxAhead = 5 * time.Minute

var producer = events.Producer{Name: "gateway", Source: "/verbatim/gateway"}

type submitInput struct {
	IdempotencyKey string `header:"Idempotency-Key" doc:"The execution id to use, a UUIDv7. A request that is sent again under its id is the same request."`
	Traceparent    string `header:"Traceparent" doc:"W3C trace context, of which the execution is to be a part: it goes with every event and, as TRACEPARENT, to the process. One that is not valid is left out, as its specification asks."`
	RawBody        []byte
	Body           api.SubmitRequest
}

type submitOutput struct {
	Location string `header:"Location"`
	Body     api.SubmitResponse
}

func (g *Gateway) submit(ctx context.Context, in *submitInput) (*submitOutput, error) {
	if !utf8.Valid(in.RawBody) {
		return nil, problem(http.StatusUnprocessableEntity, "the body is not UTF-8; decoding it would change what is to run")
	}
	id := in.IdempotencyKey
	if id == "" {
		var err error
		if id, err = events.NewExecutionID(); err != nil {
			return nil, err
		}
	}
	e, faults := requestEvent(id, in.Body)
	if len(faults) > 0 {
		return nil, problem(http.StatusUnprocessableEntity, "the request cannot be accepted", faults...)
	}
	if validTraceparent(in.Traceparent) {
		e.Traceparent = in.Traceparent
	}
	if err := g.publish(ctx, events.TopicRequests, e); err != nil {
		return nil, err
	}
	g.metrics.accepted.Inc()
	g.accepted.add(execution.Fold(id, []events.Event{e}), len(e.Payload)-len(in.Body.Stdin)+512)
	out := &submitOutput{Location: api.LinksOf(id).Self, Body: api.SubmitResponse{ExecutionID: id, Links: api.LinksOf(id)}}
	return out, nil
}

// traceparentForm is version 00 of https://www.w3.org/TR/trace-context/#traceparent-header; ids of zeros are not valid.
var traceparentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func validTraceparent(s string) bool {
	return traceparentForm.MatchString(s) && s[3:35] != strings.Repeat("0", 32) && s[36:52] != strings.Repeat("0", 16)
}

// publish returns nil only when Kafka acknowledged.
func (g *Gateway) publish(ctx context.Context, topic string, e events.Event) error {
	m, err := codec.ToMessage(e)
	if err != nil {
		return problem(http.StatusUnprocessableEntity, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	err = g.d.Publisher.PublishContext(ctx, topic, m)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kafka.ErrTooLarge):
		return problem(http.StatusUnprocessableEntity, "the request is too large for one record of Kafka")
	}
	g.c.Logger.WarnContext(ctx, "a request could not be written to the log", "topic", topic, "execution", e.Subject, "error", err)
	return problem(http.StatusServiceUnavailable,
		"Kafka did not acknowledge the request in time; it may still be accepted, so send it again with Idempotency-Key "+e.Subject)
}

// requestEvent makes the event of a request. It is worked out from its arguments alone: sent again, it is the same event, byte for
// byte. Its time is the id's.
func requestEvent(id string, r api.SubmitRequest) (events.Event, []*huma.ErrorDetail) {
	v := &validation{}
	made, err := events.ParseExecutionID(id)
	switch {
	case err != nil:
		v.bad("header.Idempotency-Key", "it must be a UUIDv7 in lower-case text form")
	case time.Until(made) > maxAhead:
		v.bad("header.Idempotency-Key", "the id was made in the future: check the clock")
	}
	d := &executionv1.ExecutionRequested{
		Timeout: v.duration("body.timeout", r.Timeout, true), Grace: v.duration("body.grace", r.Grace, false),
		Stdin: r.Stdin, StdinUpload: v.upload(r), Secrets: r.Secrets, Labels: r.Labels, RequestedBy: r.RequestedBy,
		Limits: v.limits(r.Limits),
	}
	d.OutputLimit = v.outputLimit(r.OutputLimitBytes)
	d.Retry = v.retry(r.Retry)
	switch {
	case r.Command != nil && r.Action != nil:
		v.bad("body", "give either command or action, not both")
	case r.Command != nil:
		v.command(r.Command)
		d.What = &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{
			Argv: r.Command.Argv, Environment: r.Command.Environment, Directory: r.Command.Directory,
		}}
	case r.Action != nil:
		parameters := v.action(r.Action)
		d.What = &executionv1.ExecutionRequested_Action{Action: &executionv1.Action{Name: r.Action.Name, ParametersJson: parameters}}
	default:
		v.bad("body", "give command or action: what is to run?")
	}
	if len(r.Stdin) > maxStdinBytes {
		v.bad("body.stdin", fmt.Sprintf("%d bytes, the limit is %d", len(r.Stdin), maxStdinBytes))
	}
	v.secrets(r)
	v.labels(r.Labels)
	v.text("body.requested_by", r.RequestedBy, maxRequestedBy)
	if len(v.faults) > 0 {
		return events.Event{}, v.faults
	}
	e, err := producer.Event(id, 0, 1, made, d)
	switch {
	case err != nil:
		v.bad("body", err.Error())
	case len(e.Payload) > maxRequestBytes:
		v.bad("body", fmt.Sprintf("the request takes %d bytes in Kafka, the limit is %d", len(e.Payload), maxRequestBytes))
	}
	return e, v.faults
}

// validation collects everything that is wrong with a request.
type validation struct {
	faults []*huma.ErrorDetail
}

func (v *validation) bad(where, what string) { v.faults = append(v.faults, fault(where, what)) }

// text checks what goes to an operating system or a person as a C string.
func (v *validation) text(where, s string, limit int) {
	switch {
	case len(s) > limit:
		v.bad(where, fmt.Sprintf("%d bytes, the limit is %d", len(s), limit))
	case strings.ContainsRune(s, 0):
		v.bad(where, "holds a NUL byte")
	case !utf8.ValidString(s):
		v.bad(where, "is not UTF-8")
	}
}

func (v *validation) duration(where, s string, positive bool) *durationpb.Duration {
	if s == "" {
		return nil
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		v.bad(where, `is no duration like "30s" or "1h30m"`)
	case d < 0:
		v.bad(where, "is negative")
	case d == 0 && positive:
		v.bad(where, "is zero; leave it out for no limit")
	default:
		return durationpb.New(d)
	}
	return nil
}

func (v *validation) outputLimit(bytes int64) *executionv1.OutputLimit {
	switch {
	case bytes == 0:
		return nil
	case bytes == -1:
		return &executionv1.OutputLimit{None: true}
	case bytes < 0:
		v.bad("body.output_limit_bytes", "is negative; -1 means no limit")
		return nil
	}
	return events.LimitOutput(uint64(bytes))
}

func (v *validation) command(c *api.Command) {
	if len(c.Argv) == 0 {
		v.bad("body.command.argv", "is empty: name a program")
	} else if c.Argv[0] == "" {
		v.bad("body.command.argv[0]", "is empty: name a program")
	}
	for i, a := range c.Argv {
		v.text(fmt.Sprintf("body.command.argv[%d]", i), a, maxRequestBytes)
	}
	for name, value := range c.Environment {
		where := "body.command.environment"
		if name == "" || strings.Contains(name, "=") {
			v.bad(where, "a variable's name is empty or holds an equals sign")
			continue
		}
		v.text(where, name, maxRequestBytes)
		v.text(where+"."+cut(name), value, maxRequestBytes)
	}
	if c.Directory != "" && !path.IsAbs(c.Directory) {
		v.bad("body.command.directory", "is not absolute")
	}
	v.text("body.command.directory", c.Directory, maxRequestBytes)
}

func (v *validation) action(a *api.Action) (parameters string) {
	if a.Name == "" {
		v.bad("body.action.name", "is empty")
	}
	v.text("body.action.name", a.Name, maxLabelValue)
	if len(a.Parameters) == 0 {
		return "{}"
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(a.Parameters, &object); err != nil || object == nil {
		v.bad("body.action.parameters", "is no JSON object")
		return ""
	}
	var out bytes.Buffer
	if err := json.Compact(&out, a.Parameters); err != nil {
		v.bad("body.action.parameters", "is no JSON object")
	}
	return out.String()
}

func (v *validation) labels(labels map[string]string) {
	if len(labels) > maxLabels {
		v.bad("body.labels", fmt.Sprintf("%d labels, the limit is %d", len(labels), maxLabels))
	}
	for name, value := range labels {
		if name == "" || strings.Contains(name, "=") {
			v.bad("body.labels", "a label's name is empty or holds an equals sign")
			continue
		}
		v.text("body.labels", name, maxLabelName)
		v.text("body.labels."+cut(name), value, maxLabelValue)
	}
}

// cut keeps a hostile name from filling an answer.
func cut(s string) string {
	if len(s) > maxLabelName {
		s = s[:maxLabelName] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
