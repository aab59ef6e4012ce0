package runner

import (
	"context"
	"errors"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/spool"
	"verbatim.dev/services/runner/supervisor"
)

// A process may leave another one behind that holds its output. The attempt is over all the same after Config.DrainTime: it is sealed as
// still held, and its slot is free. The runner listens on, with the same numbers and offsets, and when the pipes are at their end, or
// when it may not listen any longer, seals once more, over everything:
//
//	drained ─► OutputSealed (held) ─► listening ─┬─ end of the pipes ─────────────────────► OutputSealed
//	              │ slot free           │        └─ LateTime, LateBytes, a cancel, Stop ► OutputSealed (held), if bytes came
//	              └ process reaped      └ OutputChunk …
//
// Nobody is signalled for it: who was left behind is nobody's to end. When the listening is over without the end of a pipe, it is
// closed, and whoever writes to it gets SIGPIPE.
//
// An attempt that is listened to is one that a worker left behind: it begins by reading its journal, also without a kill. The
// supervisor keeps the pipes. When that is killed too, the next worker seals what the spool has.

// isLate says that the attempt is over but for what comes late.
func (p *past) isLate() bool {
	return p.late && !p.over
}

// addSeal reads a seal. Of a stream that was held, the next worker goes on where the seal ends, with the whole limit anew.
func (p *past) addSeal(at time.Time, d *executionv1.OutputSealed) {
	if p.sealed != nil {
		p.over = true
		return
	}
	p.sealed, p.sealedAt = d, at
	for _, seal := range d.GetStreams() {
		s, end := p.of(seal.GetStream()), seal.GetCapturedBytes()
		s.held = seal.GetPipeStillHeld()
		p.late = p.late || s.held
		switch {
		case s.mark.End != nil && s.mark.End.Broken: // It goes on being thrown away.
		case s.held:
			s.mark.End, s.mark.From, s.mark.Cut = nil, end, end
		default:
			s.mark.End = &spool.End{Captured: end}
		}
	}
}

// take takes a place where there is one.
func take(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// wantsLate reports whether somebody holds a pipe and may be listened to. Both streams are drained.
func (a *attempt) wantsLate() bool {
	r := a.runner
	if r.config.LateTime <= 0 || !a.past.streams[0].held && !a.past.streams[1].held {
		return false
	}
	select {
	case <-a.cancelled:
		return false
	case <-r.stopped:
		return false
	default:
	}
	a.hasEar = take(r.ears)
	return a.hasEar
}

func (a *attempt) attach(stdout, stderr *os.File) {
	a.attached = true
	a.spool.Attach(stdout, stderr)
}

// listen reads on after the seal. It reports whether everything was said.
func (a *attempt) listen(life context.Context) bool {
	p, err := a.pipes()
	var gone *supervisor.GoneError
	switch {
	case err == nil:
		defer p.Release()
		a.attach(p.Stdout, p.Stderr)
	case !errors.As(err, &gone): // Whether anybody has them is for the next worker to find out.
		a.log.WarnContext(life, "output that comes late cannot be read now", "error", err)
		return false
	}
	drained, said := a.move(life)
	a.untilEnough(life, drained)
	a.spool.Stop(time.Now())
	<-drained
	if !<-said || !a.flush(life) {
		return false
	}
	if seal := a.sealing(); !proto.Equal(seal, a.past.sealed) {
		a.fact(time.Now(), seal)
	}
	return true
}

// untilEnough waits until nothing more is to be read: the pipes are at their end, or the time is over, or much came.
func (a *attempt) untilEnough(life context.Context, drained <-chan struct{}) {
	over := time.NewTimer(time.Until(a.past.sealedAt.Add(a.runner.config.LateTime)))
	defer over.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			late := uint64(0)
			for _, seal := range a.past.sealed.GetStreams() {
				if there := a.spool.Captured(seal.GetStream()); there > seal.GetCapturedBytes() {
					late += there - seal.GetCapturedBytes()
				}
			}
			if late >= a.runner.config.LateBytes {
				return
			}
		case <-drained:
			return
		case <-over.C:
			return
		case <-a.cancelled:
			return
		case <-a.runner.stopped:
			return
		case <-life.Done():
			return
		}
	}
}

// pipes asks the supervisor for the pipes of the process that is no more.
func (a *attempt) pipes() (*supervisor.Process, error) {
	if !a.startedBefore() { // A machine lost its power. Asked for it, the supervisor would start the process.
		return nil, &supervisor.GoneError{}
	}
	return a.runner.client.Start(a.key, a.folder, protocol.Command{}, nil)
}
