package runner

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
)

// begin makes the attempt's folder and writes down what is about to be claimed, on the disk.
func (a *attempt) begin(launch journal.Launch) error {
	if err := os.MkdirAll(a.folder, 0o700); err != nil {
		return fmt.Errorf("make the attempt's folder: %w", err)
	}
	j, _, err := journal.Open(filepath.Join(a.folder, journalFile))
	if err != nil {
		return err
	}
	a.journal = j
	if err := j.Append(journal.Entry{Launch: &launch}); err != nil {
		return err
	}
	// At the same time: a file system writes down what it has to for all of them at once.
	var names, folders error
	var both sync.WaitGroup
	both.Go(func() { names = journal.SyncFolder(a.folder) })
	both.Go(func() { folders = journal.SyncFolder(filepath.Dir(a.folder)) })
	err = j.Sync()
	both.Wait()
	return errors.Join(err, names, folders)
}

// forget takes back begin.
func (a *attempt) forget() {
	if a.journal == nil {
		return
	}
	err := errors.Join(a.journal.Close(), removeFolder(a.folder))
	if err != nil {
		a.log.Warn("folder of an attempt that is not ours is left behind", "error", err)
	}
}

// owned writes down that the claim was acknowledged. It is not put on the disk: the supervisor's StartingFile is, right before the process
// is there, and says the same; before that the broker says it again after a crash.
func (a *attempt) owned() { a.append(journal.Entry{Claimed: true}) }

// append writes an entry down. It waits while the disk is full, which makes the process wait too. When
// the disk fails otherwise the attempt goes on without: a kill would then repeat facts, and the log says so. It does not wait as long
// as the reserve lasts, which is longest for what lets the spool give room back.
func (a *attempt) append(e journal.Entry) {
	for {
		err := a.journal.Append(e)
		if err == nil {
			if err := a.journal.Compact(); err != nil {
				a.log.Warn("journal stays long", "error", err)
			}
			a.runner.reserve.refill()
			return
		}
		if a.complained.CompareAndSwap(false, true) {
			a.log.Error("journal cannot be written", "waits", full(err), "error", err)
		}
		if !full(err) {
			return
		}
		if a.runner.reserve.give(e.Acked > 0) {
			continue
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-a.runner.life.Done():
			return
		}
	}
}

// record writes a fact down before it is queued. The outbox calls it for one fact at a time.
func (a *attempt) record(sequence uint64, at time.Time, fact proto.Message) {
	if c, ok := fact.(*executionv1.OutputChunk); ok {
		a.recordChunk(sequence, at, c)
		return
	}
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(fact)
	if err != nil {
		a.log.Error("fact cannot be encoded", "fact", nameOf(fact), "error", err)
		return
	}
	a.append(journal.Entry{Fact: &journal.Fact{Sequence: sequence, Name: nameOf(fact), At: at, Payload: payload}})
}

func (a *attempt) recordChunk(sequence uint64, at time.Time, c *executionv1.OutputChunk) {
	s := a.past.of(c.GetStream())
	s.add(c.GetData(), true)
	e := &journal.Chunk{
		Sequence: sequence, Stream: c.GetStream(), Offset: c.GetOffset(), Length: len(c.GetData()), At: at, CRC: journal.Checksum(c.GetData()),
		Digest: stateOf(s.digest), Whole: stateOf(s.whole), Masked: s.masked,
	}
	a.append(journal.Entry{Chunk: e})
	s.mark.Cut = e.End()
	a.remember(*e)
}

// remember keeps a chunk's place until it is acknowledged.
func (a *attempt) remember(c journal.Chunk) {
	a.unackedMu.Lock()
	defer a.unackedMu.Unlock()
	a.unacked = append(a.unacked, c)
}

// acknowledged gives back the spool's room for what is in the log.
func (a *attempt) acknowledged(sequence uint64) {
	a.append(journal.Entry{Acked: sequence})
	a.unackedMu.Lock()
	defer a.unackedMu.Unlock()
	n := 0
	for ; n < len(a.unacked) && a.unacked[n].Sequence <= sequence; n++ {
		a.spool.Trim(a.unacked[n].Stream, a.unacked[n].End())
	}
	a.unacked = a.unacked[n:]
}

// resume queues what was given a number and may not be in the log, as it was.
func (a *attempt) resume() error {
	a.facts.Resume(a.past.acked)
	for _, e := range a.past.recorded {
		switch {
		case e.Fact != nil && e.Fact.Sequence > a.past.acked:
			fact, err := decodeFact(*e.Fact)
			if err != nil {
				return err
			}
			if err := a.facts.Again(e.Fact.At, fact); err != nil {
				return err
			}
		case e.Chunk != nil && e.Chunk.Sequence > a.past.acked:
			if err := a.resumeChunk(*e.Chunk); err != nil {
				return err
			}
		}
	}
	a.past.recorded = nil
	return nil
}

var errLost = errors.New("it could not be read before")

func (a *attempt) resumeChunk(c journal.Chunk) error {
	data, err := a.publishedAgain(c)
	if a.past.of(c.Stream).isLost(c.Offset) { // A former worker said so, and the log may have that.
		err = cmp.Or(err, errLost)
	}
	if err != nil {
		// The number was given out, so something has to be said under it.
		a.log.Error("output is lost", "sequence", c.Sequence, "offset", c.Offset, "bytes", c.Length, "error", err)
		a.lose(c.Stream, c.Offset, c.End())
		return a.facts.Again(c.At, &executionv1.OutputReadFailed{Stream: c.Stream, Offset: c.Offset, Cause: oneLine(err.Error())})
	}
	a.remember(c)
	return a.facts.Again(c.At, &executionv1.OutputChunk{Stream: c.Stream, Offset: c.Offset, CapturedAt: timestamp(c.At), Data: data})
}

// lose lists a range of a stream that was captured and cannot be had. Everything before it was published or elided.
func (a *attempt) lose(id executionv1.Stream, start, end uint64) {
	a.append(journal.Entry{Lost: &journal.Lost{Stream: id, Start: start, End: end}})
	a.loseUncaptured(id, start, end)
}

// loseUncaptured lists a range that was not captured. Whether that stays so is for each worker to find out.
func (a *attempt) loseUncaptured(id executionv1.Stream, start, end uint64) {
	a.unackedMu.Lock()
	defer a.unackedMu.Unlock()
	a.past.of(id).lose(start, end)
}
