package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/mask"
	"verbatim.dev/services/runner/outbox"
	"verbatim.dev/services/runner/process"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/spool"
	"verbatim.dev/services/runner/supervisor"
)

// attempt is one attempt that this runner has.
type attempt struct {
	runner *Runner
	work   events.Event
	spec   *executionv1.Prepared
	key    string
	folder string
	log    *slog.Logger
	facts  *outbox.Outbox

	// hasSlot and claimed are written before the attempt runs.
	hasSlot, claimed bool
	// unanswered: its claim failed, and may be there all the same. claims are those under way for the message that came again, granted: one
	// of them succeeded (claim.go). Runner.mu guards them.
	unanswered, granted bool
	claims              int

	// masker hides the values of the secrets that the process was given; nil hides nothing. It is set before run opens the
	// spool, by every worker that has the attempt.
	masker *mask.Masker
	// secretless is why the secrets cannot be had, before the process was started; unmasked are those too short to be hidden.
	secretless error
	unmasked   []string

	// past is what a former worker did, and goes on being kept: its digests are those of what was cut. journal and spool are open from
	// the claim to the end.
	past       past
	journal    *journal.Journal
	spool      *spool.Spool
	output     flows
	complained atomic.Bool // That the journal cannot be written.
	attached   bool        // The spool has the pipes.

	// listens: the attempt is over but for what another process may write. hasEar: it is one of Config.Slots that may.
	listens, hasEar bool

	unackedMu sync.Mutex
	unacked   []journal.Chunk

	// cancelled is closed once, after why was written.
	cancelled  chan struct{}
	cancelOnce sync.Once
	why        cancellation

	outcome string // For the metrics and the log.
}

func newAttempt(r *Runner, work events.Event, spec *executionv1.Prepared) *attempt {
	log := r.config.Logger.With("execution", work.Subject, "attempt", work.Attempt)
	a := &attempt{
		runner: r, work: work, spec: spec, key: keyOf(work), log: log,
		folder:    filepath.Join(r.folders, folderName(work.Subject, work.Attempt)),
		past:      newPast(),
		cancelled: make(chan struct{}),
	}
	a.facts = outbox.New(outbox.Config{
		Producer: r.producer, Execution: work.Subject, Attempt: work.Attempt, Traceparent: work.Traceparent,
		Topic: events.TopicExecutions, LimitBytes: outboxBytes,
		Followed: followed, Record: a.record, Acknowledged: a.acknowledged,
		Publisher: r.publish, Retried: r.metrics.retries.Inc, Logger: r.config.Logger,
	})
	return a
}

// followed reports whether a fact is one that, of a process that ends at once, another one follows at once.
func followed(fact proto.Message) bool {
	switch fact.(type) {
	case *executionv1.ProcessStarted, *executionv1.ProcessExited:
		return true
	default:
		return false
	}
}

func (a *attempt) cancel(c cancellation) {
	a.cancelOnce.Do(func() {
		a.why = c
		close(a.cancelled)
	})
}

// run is the attempt's life from the claim to its last acknowledged fact. When life ends first, it kills the
// process and leaves what is not acknowledged to the next start. It reports whether the attempt goes on being listened to (late.go).
func (a *attempt) run(life context.Context) (listens bool) {
	sealed := false
	err := a.learnSecrets()
	if err != nil && !a.startedBefore() {
		a.secretless, err = err, nil // It is said when it is started.
	}
	if err == nil {
		err = a.openSpool()
	}
	if err == nil {
		defer a.spool.Close()
		err = a.resume()
	}
	if err != nil {
		a.log.ErrorContext(life, "attempt cannot go on, it is left to the next start", "folder", a.folder, "error", err)
		_ = a.journal.Close()
		return false
	}
	sent := make(chan error, 1)
	go func() { sent <- a.facts.Send(life) }()
	if err := a.guard("run", func() { sealed = a.live(life) }); err != nil {
		a.outcome = "broken"
	}
	a.facts.Close()
	err = <-sent
	if !a.past.isLate() {
		a.runner.metrics.ended.WithLabelValues(a.outcome).Inc()
	}
	if err != nil || !sealed {
		a.log.WarnContext(life, "attempt is not over, its facts are kept and published at the next start", "folder", a.folder, "error", err)
		_ = a.journal.Close()
		return false
	}
	if a.listens {
		a.log.InfoContext(life, "attempt is over, and another process still has its output, which is listened to", "outcome", a.outcome, "for", a.runner.config.LateTime)
		_ = a.journal.Close()
		return true
	}
	a.finish(life)
	return false
}

// finish forgets everything but that the attempt was here.
func (a *attempt) finish(life context.Context) {
	if err := a.runner.ended.add(a.key, time.Now()); err != nil {
		// Without the entry and the folder a Prepared that comes again would be new.
		a.log.WarnContext(life, "attempt is not in the list of ended ones, its folder is kept until the next start", "folder", a.folder, "error", err)
		_ = a.journal.Close()
		return
	}
	if err := errors.Join(a.journal.Close(), removeFolder(a.folder)); err != nil {
		a.log.WarnContext(life, "the attempt's folder is left behind", "error", err)
	}
	a.log.InfoContext(life, "attempt is over", "outcome", a.outcome)
}

// limit is how much of each stream is published, nil for everything.
func (a *attempt) limit() *spool.Limit {
	head, tail := events.HeadAndTail(a.spec.GetOutputLimit())
	if head == math.MaxUint64 {
		return nil
	}
	return &spool.Limit{Head: head, Tail: min(tail, events.MaxTailBytes)}
}

func (a *attempt) openSpool() (err error) {
	c := a.runner.config
	a.spool, err = spool.Open(spool.Config{
		ChunkBytes: c.ChunkBytes, FlushInterval: c.FlushInterval, LimitBytes: c.SpoolBytes, Limit: a.limit(),
		Preroll: uint64(a.masker.Reach()), HasRoom: a.runner.reserve.isWhole, Logger: a.log,
	}, a.folder, a.past.streams[0].mark, a.past.streams[1].mark)
	return err
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

// guarded is guard for what can fail.
func (a *attempt) guarded(doing string, do func() error) error {
	var err error
	if broken := a.guard(doing, func() { err = do() }); broken != nil {
		return broken
	}
	return err
}

// fact records what happened at a time. It can only fail for a fact that is not valid, which is a defect of
// this package; it is logged, since nothing else may be stopped by it.
func (a *attempt) fact(at time.Time, f proto.Message) {
	if err := a.facts.Add(at, f); err != nil {
		a.log.Error("fact is lost", "fact", string(f.ProtoReflect().Descriptor().Name()), "error", err)
	}
}

// live starts or finds the process, watches it and seals its output. It reports whether everything was said.
func (a *attempt) live(life context.Context) bool {
	a.outcome = "resumed" // Until something better is known.
	if a.past.names["OutputSealed"] {
		a.removeDirectory(life)
		return !a.past.isLate() || a.listen(life)
	}
	if a.past.names["StartFailed"] {
		a.sealNothing()
		return true
	}
	limits, p, err := a.start(life)
	var gone *supervisor.GoneError
	switch {
	case errors.As(err, &gone):
		return a.liveWithout(life, gone)
	case errors.Is(err, supervisor.ErrEnded), errors.Is(err, errLeft): // Whether it was started is for the next worker to find out.
		a.outcome = "abandoned"
		return false
	case err != nil:
		a.removeDirectory(life)
		a.startFailed(err)
		return true
	}
	defer p.Release()
	if !a.past.names["ProcessStarted"] {
		a.runner.metrics.started.Inc()
		a.processStarted(p.Record)
	}
	a.attach(p.Stdout, p.Stderr)
	var writer sync.WaitGroup
	if p.Stdin != nil {
		writer.Go(func() { _ = a.guard("write stdin", func() { a.feed(p) }) })
	}
	drained, said := a.move(life)
	w := newWatch(a, p, limits, drained)
	if err := a.guard("watch", func() {
		a.log.InfoContext(life, "process runs", "pid", p.PID)
		w.run(life)
	}); err != nil {
		w.giveUp(err)
	}
	<-drained
	writer.Wait()
	w.close()
	if a.listens = a.wantsLate(); a.listens {
		p.Reap()
	} else {
		p.Release() // The spool has everything: no supervisor is needed any more.
	}
	a.removeDirectory(life)
	return <-said && w.told && a.seal(life)
}

// liveWithout finishes an attempt whose supervisor is no more: what is in the spool, and in the pipes when it ended in the middle of the
// start, is all there is.
func (a *attempt) liveWithout(life context.Context, gone *supervisor.GoneError) bool {
	if gone.Stdout != nil {
		a.attach(gone.Stdout, gone.Stderr)
	}
	drained, said := a.move(life)
	if gone.Record != nil && !a.past.names["ProcessStarted"] {
		a.processStarted(*gone.Record)
	}
	if a.past.ending != nil {
		var at time.Time
		if gone.Exit != nil {
			at = gone.Exit.EndedAt
		}
		a.tellEnding(at)
	}
	a.endOrphan(life, gone)
	if gone.Stdout != nil {
		a.endHalfStarted(life, gone, drained)
	}
	if !a.past.names["ProcessExited"] && !a.past.names["WaitFailed"] {
		err := error(gone)
		if gone.Record == nil {
			err = fmt.Errorf("whether the process was started is not known: %w", err)
		}
		var exit process.Exit
		if gone.Exit != nil {
			exit, err = supervisor.Decode(*gone.Exit)
		}
		if err != nil {
			a.outcome = "wait_failed"
			a.waitFailed(err)
		} else {
			a.fact(exit.EndedAt, exited(exit))
		}
	}
	a.removeDirectory(life)
	return <-said && a.seal(life)
}

// endHalfStarted reads the pipes of a process that may only be about to be there: its supervisor ended around fork(2). Whoever shows up
// is ended, and the pipes are read for as long as those of any process that has ended.
func (a *attempt) endHalfStarted(life context.Context, gone *supervisor.GoneError, drained <-chan struct{}) {
	defer func() { a.spool.Stop(time.Now()) }()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for over := time.After(a.runner.config.DrainTime); ; {
		select {
		case <-drained:
			return
		case <-look.C:
			a.endOrphan(life, gone)
		case <-over:
			return
		case <-life.Done():
			return
		}
	}
}

func (a *attempt) processStarted(r protocol.Record) {
	a.fact(r.StartedAt, &executionv1.ProcessStarted{
		Pid: int64(r.PID), ProcessStartedAt: timestamp(r.StartedAt), Host: a.runner.config.Host, Runner: a.runner.config.ID,
		UnmaskedSecrets: a.unmasked,
	})
}

// move moves both streams into the spool, and from there chunks into the outbox. drained is closed when the pipes are done
// with; said gets whether every chunk got into the outbox. Then flush is due.
func (a *attempt) move(life context.Context) (drained <-chan struct{}, said <-chan bool) {
	d, s := make(chan struct{}), make(chan bool, 1)
	var readers sync.WaitGroup
	var whole atomic.Bool
	whole.Store(true)
	a.output = flows{a: a}
	for _, stream := range []executionv1.Stream{executionv1.Stream_STREAM_STDOUT, executionv1.Stream_STREAM_STDERR} {
		readers.Go(func() {
			if !a.read(life, stream) {
				whole.Store(false)
			}
		})
	}
	go func() {
		readers.Wait()
		close(d)
	}()
	go func() {
		err := a.guarded("publish output", func() error { return a.output.publish(life) })
		<-d
		s <- err == nil && whole.Load()
	}()
	return d, s
}

// read moves one stream to its end and records when that was not possible. It reports false when bytes were left in the pipe for
// lack of time.
func (a *attempt) read(life context.Context, stream executionv1.Stream) bool {
	var readErr error
	if err := a.guard("read output", func() { readErr = a.spool.Read(life, stream) }); err != nil {
		readErr = &spool.ReadError{Stream: stream, Offset: a.spool.Captured(stream), Cause: err}
	}
	s := a.past.of(stream)
	var failed *spool.ReadError
	switch {
	case readErr == nil, errors.Is(readErr, spool.ErrHeld):
		if end, _ := a.spool.Ended(stream); a.attached { // Else nobody has looked.
			s.held = end.Held
		}
		return true
	case !errors.As(readErr, &failed):
		a.log.WarnContext(life, "output stays in the pipe", "stream", events.StreamName(stream), "error", readErr)
		return false
	}
	a.log.ErrorContext(life, "output cannot be kept", "stream", events.StreamName(stream), "offset", failed.Offset, "error", failed.Cause)
	if !s.unread {
		a.fact(time.Now(), &executionv1.OutputReadFailed{Stream: stream, Offset: failed.Offset, Cause: oneLine(failed.Cause.Error())})
	}
	before := s.beyond
	count := func(n uint64) {
		s.beyond = before + n
		a.append(journal.Entry{Ended: &journal.Ended{Stream: stream, Captured: failed.Offset, Held: s.held, Broken: true, Beyond: s.beyond}})
	}
	count(0)
	n, held := a.spool.Discard(stream, count)
	s.held = held
	if count(n); s.beyond > 0 {
		a.loseUncaptured(stream, failed.Offset, failed.Offset+s.beyond)
	}
	return true
}

// flush passes on what is held back of the output, as far as it is decided. It reports whether that was possible.
func (a *attempt) flush(life context.Context) bool {
	return a.guarded("flush output", func() error { return a.output.flush(life) }) == nil
}

// seal seals what there is. It reports false when the time was over before.
func (a *attempt) seal(life context.Context) bool {
	if !a.flush(life) {
		return false
	}
	a.fact(time.Now(), a.sealing())
	return true
}

// sealing is the seal as far as both streams are known.
func (a *attempt) sealing() *executionv1.OutputSealed {
	var seals []*executionv1.StreamSeal
	for _, id := range []executionv1.Stream{executionv1.Stream_STREAM_STDOUT, executionv1.Stream_STREAM_STDERR} {
		s := a.past.of(id)
		captured := a.spool.Captured(id) - a.output.heldBack(id) + s.beyond
		seal := &executionv1.StreamSeal{
			Stream: id, CapturedBytes: captured, PublishedBytes: captured, Elided: s.elided, Lost: s.lost,
			PublishedSha256: s.digest.Sum(nil), PipeStillHeld: s.held, MaskedRanges: s.masked.Ranges, MaskedBytes: s.masked.Bytes,
		}
		for _, r := range slices.Concat(s.elided, s.lost) {
			seal.PublishedBytes -= r.GetEnd() - r.GetStart()
		}
		if len(s.lost) == 0 {
			seal.Sha256 = s.sum()
		}
		if s.held && !a.listens {
			a.log.Warn("another process still holds the pipe, what it writes from now on is not kept", "stream", events.StreamName(id), "captured_bytes", captured)
		}
		seals = append(seals, seal)
	}
	return &executionv1.OutputSealed{Streams: seals}
}

// sealNothing seals the output of a process that never was.
func (a *attempt) sealNothing() { a.fact(time.Now(), a.sealing()) }

// removeDirectory removes the working directory, when it is ours.
func (a *attempt) removeDirectory(life context.Context) {
	if err := a.directory().remove(); err != nil {
		a.log.WarnContext(life, "working directory is left behind", "error", err)
	}
}

// startFailed records why there is no process, and that there is no output.
func (a *attempt) startFailed(err error) {
	f := &executionv1.StartFailed{Message: oneLine(err.Error()), Host: a.runner.config.Host, Runner: a.runner.config.ID}
	a.outcome = "start_failed"
	var start *process.StartError
	var errno syscall.Errno
	switch {
	case errors.Is(err, errCancelled):
		a.outcome = "cancelled"
		f.Reason = executionv1.StartFailureReason_START_FAILURE_REASON_CANCELLED
	case errors.Is(err, errExpired):
		a.outcome = "expired"
		f.Reason = executionv1.StartFailureReason_START_FAILURE_REASON_EXPIRED
	case errors.As(err, &start):
		f.Reason, f.Errno = start.Reason, int32(start.Errno)
	case errors.As(err, &errno):
		f.Reason, f.Errno = executionv1.StartFailureReason_START_FAILURE_REASON_RESOURCES, int32(errno)
	}
	a.fact(time.Now(), f)
	a.sealNothing()
	a.log.Info("process was not started", "reason", f.GetReason().String(), "error", err)
}
