package cli

import (
	"fmt"
	"io"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/gateway/api"
)

// follower writes an execution's output as its facts come and remembers how it ended. A later attempt
// starts anew: its output follows and its end counts.
type follower struct {
	stdout, stderr io.Writer
	// only, if not empty, is the one stream to write.
	only string

	attempt           uint32
	written           map[string]uint64 // end of what was written, by stream
	gaps              []gap
	preparationFailed *executionv1.PreparationFailed
	startFailed       *executionv1.StartFailed
	exited            *executionv1.ProcessExited
	waitFailed        *executionv1.WaitFailed
	lost              *executionv1.RunnerLost
	termination       executionv1.TerminationCause
}

// gap is a range of a stream that no fact carried.
type gap struct {
	stream     string
	start, end uint64
}

func (f *follower) take(fact api.Fact) error {
	payload, err := fact.Payload()
	if err != nil {
		return err
	}
	if fact.Attempt > f.attempt {
		*f = follower{stdout: f.stdout, stderr: f.stderr, only: f.only, attempt: fact.Attempt, gaps: f.gaps}
	}
	switch p := payload.(type) {
	case *executionv1.OutputChunk:
		return f.chunk(p)
	case *executionv1.PreparationFailed:
		f.preparationFailed = p
	case *executionv1.StartFailed:
		f.startFailed = p
	case *executionv1.ProcessExited:
		f.exited = p
	case *executionv1.WaitFailed:
		f.waitFailed = p
	case *executionv1.RunnerLost:
		f.lost = p
	case *executionv1.TerminationStarted:
		if f.termination == executionv1.TerminationCause_TERMINATION_CAUSE_UNSPECIFIED {
			f.termination = p.GetCause()
		}
	case *executionv1.OutputSealed:
		for _, s := range p.GetStreams() {
			f.missing(events.StreamName(s.GetStream()), s.GetCapturedBytes())
		}
	}
	return nil
}

// chunk writes the bytes that were not written yet.
func (f *follower) chunk(c *executionv1.OutputChunk) error {
	stream := events.StreamName(c.GetStream())
	w := map[string]io.Writer{"stdout": f.stdout, "stderr": f.stderr}[stream]
	if w == nil || (f.only != "" && stream != f.only) {
		return nil
	}
	data, end := c.GetData(), c.GetOffset()+uint64(len(c.GetData()))
	written := f.written[stream]
	if end <= written {
		return nil
	}
	if c.GetOffset() < written {
		data = data[written-c.GetOffset():]
	}
	f.missing(stream, c.GetOffset())
	if f.written == nil {
		f.written = map[string]uint64{}
	}
	f.written[stream] = end
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", stream, err)
	}
	return nil
}

// missing notes that a stream goes on at an offset that does not follow what was written.
func (f *follower) missing(stream string, offset uint64) {
	if f.only != "" && stream != f.only {
		return
	}
	if written := f.written[stream]; offset > written {
		f.gaps = append(f.gaps, gap{stream, written, offset})
	}
}
