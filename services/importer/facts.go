package importer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// ErrChanged says that a file is not any more what it was when it was digested: whoever writes it has not ended.
var ErrChanged = errors.New("was written to while it was read; import it when its worker has ended")

const (
	chunkBytes = 256 << 10
	batchBytes = 4 << 20
)

// Publisher writes messages to the log; when it returns nil they are there.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error
}

// Meta is what the importing person adds.
type Meta struct {
	Action string
	Labels map[string]string
}

// Ending says in words how the process ended, as the facts will have it.
func (f *Folder) Ending() string {
	switch d := f.end().(type) {
	case *executionv1.ProcessExited:
		if s := d.GetSignal(); s != nil {
			return "signal " + s.GetName()
		}
		return fmt.Sprintf("exit code %d", d.GetExitCode())
	case *executionv1.WaitFailed:
		return "not known: " + d.GetCause()
	}
	return ""
}

// Sizes are the bytes of stdout and stderr; absent files have none.
func (f *Folder) Sizes() (stdout, stderr uint64) {
	var n [2]uint64
	for i, g := range f.files {
		if g != nil {
			n[i] = g.size
		}
	}
	return n[0], n[1]
}

// NotUnderstood lists the fields of the result that gave no fact, and Fault why none did.
func (f *Folder) NotUnderstood() (fields []string, fault string) {
	return f.result.NotUnderstood, f.result.fault
}

// Publish writes the folder's facts to the log, in the same order and with the same ids each time. It fails with ErrChanged when a
// file was written to since Open; nothing is sealed then. tell is called with the bytes that are in the log since the last call.
func (f *Folder) Publish(ctx context.Context, topic string, p Publisher, m Meta, tell func(uint64)) error {
	w := &writer{ctx: ctx, topic: topic, to: p, folder: f, tell: tell, producer: events.Producer{Name: "import", Source: "/verbatim/import"}}
	w.fact(0, f.began, f.requested(m))
	w.fact(1, f.last, f.imported())
	if r := f.result; r.PID > 0 || !r.Started.IsZero() {
		w.fact(1, f.began, &executionv1.ProcessStarted{
			Pid: r.PID, ProcessStartedAt: stamp(r.Started), Host: or(r.Host, f.Host), Runner: clip(r.Runner),
		})
	}
	var changed error
	for i, g := range f.files {
		if g == nil {
			continue
		}
		if err := w.chunks(i, g); errors.Is(err, ErrChanged) {
			// What is in the log stays true; that there is more, or other, is said and not sealed.
			changed = errors.Join(changed, err)
			w.fact(1, f.last, &executionv1.OutputReadFailed{Stream: streams[i].stream, Cause: "the file " + ErrChanged.Error()})
		} else if err != nil {
			return err
		}
	}
	if cause := f.termination(); cause != executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED {
		w.fact(1, f.ended(), &executionv1.TerminationStarted{Cause: cause, Message: "the result says so"})
	}
	w.fact(1, f.ended(), f.end())
	if changed == nil {
		w.fact(1, f.ended(), f.seal())
	}
	return errors.Join(w.flush(), changed)
}

// writer numbers the facts and publishes them in batches; its first error stays.
type writer struct {
	ctx      context.Context //nolint:containedctx // It lives as long as one call of Publish.
	topic    string
	to       Publisher
	producer events.Producer
	folder   *Folder
	tell     func(uint64)

	sequence [2]uint64 // By attempt.
	batch    []*message.Message
	bytes    int
	err      error
}

func (w *writer) fact(attempt uint32, at time.Time, data proto.Message) {
	if w.err != nil {
		return
	}
	w.sequence[attempt]++
	e, err := w.producer.Event(w.folder.Execution, attempt, w.sequence[attempt], at, data)
	if err != nil {
		w.err = err
		return
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		w.err = err
		return
	}
	w.batch = append(w.batch, m)
	if w.bytes += len(e.Payload); w.bytes >= batchBytes {
		w.err = w.flush()
	}
}

func (w *writer) flush() error {
	if w.err != nil || len(w.batch) == 0 {
		return w.err
	}
	if err := w.to.PublishContext(w.ctx, w.topic, w.batch...); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if w.tell != nil {
		w.tell(uint64(w.bytes))
	}
	w.batch, w.bytes = nil, 0
	return nil
}

func (w *writer) chunks(index int, g *file) error {
	in, _, err := open(w.folder.Path, g.name)
	if err != nil {
		return err
	}
	if in == nil {
		return fmt.Errorf("%s %w", g.path, ErrChanged)
	}
	defer in.Close()
	h := sha256.New()
	for offset := uint64(0); ; {
		data := make([]byte, chunkBytes)
		n, err := io.ReadFull(reader{w.ctx, in}, data)
		if n > 0 {
			h.Write(data[:n])
			w.fact(1, g.modified, &executionv1.OutputChunk{Stream: streams[index].stream, Offset: offset, CapturedAt: stamp(g.modified), Data: data[:n]})
			offset += uint64(n)
		}
		switch {
		case w.err != nil:
			return w.err
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF): //nolint:errorlint // As ReadFull has it.
			if [sha256.Size]byte(h.Sum(nil)) != g.sha256 {
				return fmt.Errorf("%s %w", g.path, ErrChanged)
			}
			return nil
		case err != nil:
			return fmt.Errorf("read %s: %w", g.path, err)
		case offset > g.size:
			return fmt.Errorf("%s %w", g.path, ErrChanged)
		}
	}
}

func (f *Folder) requested(m Meta) *executionv1.ExecutionRequested {
	all := map[string]string{"imported": "true"}
	for k, v := range f.result.Labels {
		all[k] = v
	}
	if f.result.ID != "" {
		all["imported_id"] = clip(f.result.ID)
	}
	for k, v := range m.Labels {
		all[k] = v
	}
	d := &executionv1.ExecutionRequested{Labels: all}
	switch action := or(m.Action, clip(f.result.Action)); {
	case len(f.result.Argv) > 0 && m.Action == "":
		d.What = &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: f.result.Argv, Directory: clip(f.result.Directory)}}
	case action != "":
		d.What = &executionv1.ExecutionRequested_Action{Action: &executionv1.Action{Name: action}}
	}
	return d
}

func (f *Folder) imported() *executionv1.ResultImported {
	d := &executionv1.ResultImported{Folder: f.Path, Host: f.Host, ResultName: f.resultName, Result: f.resultText, ResultFault: f.result.fault}
	for _, g := range f.files {
		if g != nil {
			d.Files = append(d.Files, &executionv1.ImportedFile{Name: g.name, SizeBytes: g.size, ModifiedAt: stamp(g.modified), Sha256: g.sha256[:]})
		}
	}
	return d
}

// Words for a status, without case, "_" and "-".
var (
	successes = []string{"success", "succeeded", "ok", "passed"}
	failures  = []string{"failure", "failed", "error", "errored", "crashed", "lost", "killed"}
	timeouts  = []string{"timeout", "timedout"}
	cancels   = []string{"cancelled", "canceled", "aborted"}
)

func (f *Folder) says(words []string) bool { return slices.Contains(words, plain(f.result.Status)) }

func (f *Folder) termination() executionv1.TerminationCause {
	switch {
	case f.result.TimedOut || f.says(timeouts):
		return executionv1.TerminationCause_TERMINATION_CAUSE_TIMEOUT
	case f.says(cancels):
		return executionv1.TerminationCause_TERMINATION_CAUSE_CANCEL
	}
	return executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED
}

// end is ProcessExited or WaitFailed, by the table in the package's documentation.
func (f *Folder) end() proto.Message {
	r := f.result
	at := stamp(f.ended())
	code := func(n int64) proto.Message {
		return &executionv1.ProcessExited{Status: &executionv1.ProcessExited_ExitCode{ExitCode: int32(n)}, EndedAt: at}
	}
	signal := func(name string) proto.Message {
		return &executionv1.ProcessExited{
			Status:  &executionv1.ProcessExited_Signal{Signal: &executionv1.Signal{Number: int32(unix.SignalNum("SIG" + name)), Name: name}},
			EndedAt: at,
		}
	}
	bad := r.Error != "" || f.says(failures) || f.termination() != executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED
	switch {
	case r.Signal != "":
		return signal(r.Signal)
	case r.ExitCode == nil && f.says(successes) && !bad, r.ExitCode != nil && *r.ExitCode == 0 && !bad:
		return code(0)
	case r.ExitCode != nil && *r.ExitCode >= 1 && *r.ExitCode <= 255:
		return code(*r.ExitCode)
	case r.ExitCode != nil && *r.ExitCode <= -2:
		if name := signalNumber(-*r.ExitCode); name != "" {
			return signal(name)
		}
	}
	return &executionv1.WaitFailed{Cause: f.unknown(), FailedAt: at}
}

// unknown says why the exit status is not known.
func (f *Folder) unknown() string {
	r := f.result
	switch {
	case r.Error != "":
		return clip(r.Error)
	case f.resultName == "":
		return "the imported folder has no result"
	case r.fault != "":
		return fmt.Sprintf("%s cannot be read: %s", f.resultName, r.fault)
	case r.Message != "":
		return clip(r.Message)
	case r.ExitCode != nil:
		return fmt.Sprintf("%s says exit code %d, which is not believed", f.resultName, *r.ExitCode)
	case r.Status != "":
		return fmt.Sprintf("%s says %q and no exit code", f.resultName, clip(r.Status))
	}
	return f.resultName + " does not say how the process ended"
}

func (f *Folder) ended() time.Time {
	if !f.result.Ended.IsZero() {
		return f.result.Ended
	}
	return f.last
}

// seal states what the files hold; what the result says they should hold besides is lost.
func (f *Folder) seal() *executionv1.OutputSealed {
	d := &executionv1.OutputSealed{}
	for i, g := range f.files {
		said := f.result.Sizes[i]
		if g == nil && said == nil {
			continue // Of this stream nothing is known.
		}
		s := &executionv1.StreamSeal{Stream: streams[i].stream}
		empty := sha256.Sum256(nil)
		s.PublishedSha256 = empty[:]
		if g != nil {
			s.PublishedBytes, s.PublishedSha256 = g.size, g.sha256[:]
		}
		s.CapturedBytes, s.Sha256 = s.PublishedBytes, s.PublishedSha256
		if said != nil && *said > s.CapturedBytes {
			s.Lost = []*executionv1.ByteRange{{Start: s.CapturedBytes, End: *said}}
			s.CapturedBytes, s.Sha256 = *said, nil
		}
		if sum := f.result.Digests[i]; sum != nil {
			s.Sha256 = sum
			if len(s.Lost) == 0 { // Another one than the bytes have is a mismatch, and the row says so.
				s.PublishedSha256 = sum
			}
		}
		d.Streams = append(d.Streams, s)
	}
	return d
}

// signalOf understands "SIGKILL", "KILL", "9" and 9; empty when it is no signal.
func signalOf(v any) string {
	if n := integer(v); n != nil {
		return signalNumber(*n)
	}
	s, _ := v.(string)
	s = strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum("SIG"+s) == 0 {
		return ""
	}
	return s
}

func signalNumber(n int64) string {
	if n < 1 || n > 64 {
		return ""
	}
	return strings.TrimPrefix(unix.SignalName(unix.Signal(n)), "SIG")
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// clip bounds a text of the result; whole it is in ResultImported.
func clip(s string) string {
	const most = 4 << 10
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
