package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
	"verbatim.dev/services/recorder/forgery"
)

// producer makes this service's facts. They are numbered apart from the recorder's others.
var producer = events.Producer{Name: "recorder.artifacts", Source: "/verbatim/recorder/artifacts"}

// archiveBudget is how long the archive may take to catch up until that counts as a failure.
const archiveBudget = 10 * time.Second

var errStopped = errors.New("record artifacts: the service stops")

// record returns when the artifacts hold everything that was in the log at the time of the call. However many call at the same time,
// there is one making under way and one that follows.
func (r *Recorder) record(ctx context.Context, a *attempt) error {
	a.mu.Lock()
	if a.next == nil {
		if !a.working && !r.begin(func() { r.work(a) }) {
			a.mu.Unlock()
			return errStopped
		}
		a.next, a.working = &making{done: make(chan struct{})}, true
	}
	mine := a.next
	a.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return fmt.Errorf("record artifacts: %w", ctx.Err())
	}
}

// work makes the artifacts of an attempt until nobody waits for it.
func (r *Recorder) work(a *attempt) {
	r.metrics.waiting.Inc()
	defer r.metrics.waiting.Dec()
	for {
		a.mu.Lock()
		if a.next == nil {
			a.working = false
			a.mu.Unlock()
			return
		}
		var rest time.Duration
		if !a.made.IsZero() {
			rest = time.Until(a.made.Add(max(r.AgainDelay, 10*a.took)))
		}
		a.mu.Unlock()
		err := pause(r.life, rest)
		a.mu.Lock()
		mine := a.next
		a.next = nil
		a.mu.Unlock()
		if err == nil {
			err = r.insist(a)
		}
		mine.err = err
		close(mine.done)
	}
}

// insist makes the artifacts, however often it takes.
func (r *Recorder) insist(a *attempt) error {
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = 10 * time.Second
	_, err := backoff.Retry(r.life, func() (struct{}, error) {
		began := time.Now()
		err := r.try(a)
		if err != nil {
			r.metrics.failures.Inc()
			r.outage.failed(r.life, a, err)
			return struct{}{}, err
		}
		r.outage.worked(r.life)
		a.mu.Lock()
		a.made, a.took = time.Now(), time.Since(began)
		a.mu.Unlock()
		return struct{}{}, nil
	}, backoff.WithBackOff(waits), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("record artifacts: %w", err)
	}
	return nil
}

func (r *Recorder) try(a *attempt) error {
	if !r.Barrier.Wait(r.life, a.partition, archiveBudget) {
		return errors.New("the archive is behind the log")
	}
	if err := r.making.Acquire(r.life, 1); err != nil {
		return err
	}
	defer r.making.Release(1)
	a.writing.Lock()
	defer a.writing.Unlock()
	if gone, err := r.deleted(r.life, a); gone || err != nil {
		return err
	}
	facts, err := r.Archive.AttemptFacts(r.life, a.name, append([]string{events.TypeOutputRecorded}, ends...)...)
	if err != nil {
		return err
	}
	known := sift(facts)
	if !known.ended {
		// Only when the archive was deleted from.
		return nil
	}
	now := &executionv1.OutputRecorded{}
	for _, stream := range artifact.Streams {
		f, err := r.make(r.life, a, stream, known.seals)
		if err != nil {
			return err
		}
		now.Artifacts = append(now.Artifacts, f)
	}
	if gone, err := r.deleted(r.life, a); gone || err != nil {
		return err
	}
	if !proto.Equal(now, known.recorded) {
		if err := r.publish(a, known.sequence+1, now); err != nil {
			return err
		}
	}
	return r.sweep(a)
}

// sifted is what the archive knows of an attempt's end.
type sifted struct {
	ended bool
	seals []*executionv1.OutputSealed
	// recorded is the last fact of this service about it, sequence its number; nil and 0 when there is none.
	recorded *executionv1.OutputRecorded
	sequence uint64
}

func sift(facts []clickhouse.ArchivedEvent) (k sifted) {
	forged := forgery.In(facts, producer)
	for _, f := range facts {
		switch d := f.Event.Data.(type) {
		case *executionv1.OutputSealed:
			k.ended, k.seals = true, append(k.seals, d)
		case *executionv1.RunnerLost:
			k.ended = true
		case *executionv1.OutputRecorded:
			if f.Event.Source == producer.Source && f.Event.Sequence > k.sequence && !forged(&f.Event) {
				k.recorded, k.sequence = d, f.Event.Sequence
			}
		}
	}
	return k
}

// sealOf is what the seals state of a stream: of several the one that counted most bytes, since it was made last.
func sealOf(seals []*executionv1.OutputSealed, stream string) (seal *executionv1.StreamSeal) {
	for _, d := range seals {
		for _, s := range d.GetStreams() {
			if events.StreamName(s.GetStream()) == stream && (seal == nil || s.GetCapturedBytes() > seal.GetCapturedBytes()) {
				seal = s
			}
		}
	}
	return seal
}

// publish says where the artifacts are. The sequence follows from what is archived of this attempt, and the archive has all of the log that
// there was before; so nobody makes two facts of one id but for the same content.
func (r *Recorder) publish(a *attempt, sequence uint64, d *executionv1.OutputRecorded) error {
	for _, f := range d.GetArtifacts() {
		if f.GetDigestCheck() == executionv1.DigestCheck_DIGEST_CHECK_MISMATCH {
			r.metrics.mismatches.Inc()
			r.Logger.ErrorContext(r.life, "an artifact has not the bytes that the seal states", "execution", a.name.ID, "attempt", a.name.Number,
				"stream", events.StreamName(f.GetStream()), "uri", f.GetUri(), "bytes", f.GetSizeBytes(), "left_out_bytes", f.GetLeftOutBytes())
		}
	}
	e, err := producer.Event(a.name.ID, a.name.Number, sequence, time.Now(), d)
	if err != nil {
		return err
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		return err
	}
	if err := r.Publisher.PublishContext(r.life, events.TopicExecutions, m); err != nil {
		return fmt.Errorf("publish OutputRecorded: %w", err)
	}
	r.metrics.recorded.Inc()
	return nil
}

// sweep removes what lies beside the artifacts: parts, and what a killed writer left.
func (r *Recorder) sweep(a *attempt) error {
	name := artifact.Attempt{Execution: a.name.ID, Number: a.name.Number}
	folder, err := name.Folder()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, stream := range artifact.Streams {
		key, err := name.Key(stream, r.Compression)
		if err != nil {
			return err
		}
		keep[key] = true
	}
	var rest []string
	err = r.Store.List(r.life, folder, func(o artifact.Object) error {
		if !keep[o.Key] {
			rest = append(rest, o.Key)
		}
		return nil
	})
	if err != nil || len(rest) == 0 {
		return err
	}
	a.parted = nil
	return r.Store.Delete(r.life, rest...)
}

// check compares a digest with the seal's.
func check(seal *executionv1.StreamSeal, sum []byte) executionv1.DigestCheck {
	switch {
	case len(seal.GetPublishedSha256()) == 0:
		return executionv1.DigestCheck_DIGEST_CHECK_UNSPECIFIED
	case bytes.Equal(sum, seal.GetPublishedSha256()):
		return executionv1.DigestCheck_DIGEST_CHECK_MATCH
	}
	return executionv1.DigestCheck_DIGEST_CHECK_MISMATCH
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
