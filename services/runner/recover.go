package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// ErrLocked says that another runner works on the data folder, or still finishes what it has there.
var ErrLocked = errors.New("data folder is in use by another runner")

// open takes the data folder, and starts a supervisor in this process when there is no other.
func (r *Runner) open() error {
	r.work, r.folders = filepath.Join(r.config.DataDir, "work"), filepath.Join(r.config.DataDir, "attempts")
	for _, folder := range []string{r.work, r.folders} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return fmt.Errorf("make data folder: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(r.config.DataDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return errors.Join(fmt.Errorf("lock %s: %w", r.config.DataDir, err), lock.Close())
	}
	r.lock = lock
	if r.reserve, err = openReserve(r.config.DataDir); err != nil {
		return errors.Join(err, lock.Close())
	}
	r.ended.path = filepath.Join(r.config.DataDir, "ended")
	err = r.ended.load(attemptAge, attemptLimit, func(key string, at time.Time) { r.known.add(key, struct{}{}, at) })
	if err != nil {
		return errors.Join(err, r.reserve.close(), lock.Close())
	}
	if r.client = r.config.Supervisor; r.client != nil {
		return nil
	}
	ours, theirs, err := protocol.Pair()
	if err != nil {
		return errors.Join(err, r.reserve.close(), lock.Close())
	}
	conn, err := protocol.New(theirs)
	if err != nil {
		return errors.Join(err, ours.Close(), r.reserve.close(), lock.Close())
	}
	r.host = supervisor.NewHost(r.config.Logger)
	r.host.UseGroups(cgroup.Open(r.config.ID, r.config.DataDir, r.config.Logger))
	r.busyHost.Go(func() {
		_ = r.host.Serve(conn, nil)
		_ = conn.Close()
	})
	r.client = supervisor.NewClient(ours)
	return nil
}

// close gives the data folder back. Calling it again does nothing.
func (r *Runner) close() {
	r.closeOnce.Do(func() {
		if r.host != nil {
			_ = r.client.Close()
			r.busyHost.Wait()
			r.host.Close()
		}
		_ = r.reserve.close()
		_ = r.lock.Close()
	})
}

// launchOf is what is written down before a claim.
func (a *attempt) launchOf(m *message.Message) journal.Launch {
	l := journal.Launch{Execution: a.work.Subject, Attempt: a.work.Attempt, Traceparent: a.work.Traceparent, At: time.Now()}
	l.Payload, _ = proto.Marshal(a.spec) // It was decoded a moment ago.
	if at, ok := kafka.PositionFromContext(m.Context()); ok {
		l.Placed, l.Partition, l.Offset = true, at.Partition, at.Offset
	}
	return l
}

// Adopt goes on with the attempts that a former worker left in the data folder and that it had begun to start, and says how many. It
// needs nobody but the supervisor: their pipes are read and their timeouts kept while the broker is away. What is left of the data
// folder is for Recover.
func (r *Runner) Adopt(ctx context.Context) (int, error) {
	entries, err := os.ReadDir(r.folders)
	if err != nil {
		return 0, fmt.Errorf("read the folder of attempts: %w", err)
	}
	n := 0
	r.left = []*attempt{}
	for _, e := range entries {
		a, err := r.reopen(filepath.Join(r.folders, e.Name()))
		switch {
		case err != nil:
			r.config.Logger.ErrorContext(ctx, "attempt cannot be read, it is left where it is", "folder", e.Name(), "error", err)
		case a != nil && a.startedBefore():
			r.adopt(a)
			n++
		case a != nil:
			r.left = append(r.left, a)
		}
	}
	return n, nil
}

// Recover goes on with what Adopt left, which it calls first if nobody has. It comes before the first Handle, and when the cancels that
// there were are known. Attempts that were claimed go on at once. For those of which that is not known the broker is asked, until the
// context ends; they are dropped when it says no, since it brings them again. After an error it may be called again.
func (r *Runner) Recover(ctx context.Context) error {
	if r.left == nil {
		if _, err := r.Adopt(ctx); err != nil {
			return err
		}
	}
	for len(r.left) > 0 {
		a := r.left[0]
		mine := a.past.claimed
		if !mine {
			whose, err := r.asked(ctx, a.past.launch)
			if err != nil {
				return fmt.Errorf("ask whose attempt %s is: %w", a.key, err)
			}
			mine = whose == Mine
		}
		r.left = r.left[1:]
		if !mine {
			a.log.InfoContext(ctx, "attempt was not claimed before the crash, it comes again or is another runner's")
			a.forget()
			continue
		}
		if !a.past.claimed {
			a.owned()
		}
		r.adopt(a)
	}
	return nil
}

// asked asks the broker whose a claim is.
func (r *Runner) asked(ctx context.Context, l *journal.Launch) (Whose, error) {
	if r.config.Committed == nil {
		return Nobodys, nil
	}
	return r.config.Committed(ctx, *l)
}

// reopen reads an attempt's folder. No attempt and no error: there was none yet, or nothing of it is left.
func (r *Runner) reopen(folder string) (*attempt, error) {
	j, list, err := journal.Open(filepath.Join(folder, journalFile))
	if err != nil {
		return nil, err
	}
	p, err := fold(list)
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	if p.launch == nil {
		return nil, errors.Join(j.Close(), removeFolder(folder))
	}
	spec := &executionv1.Prepared{}
	if err := proto.Unmarshal(p.launch.Payload, spec); err != nil {
		return nil, errors.Join(fmt.Errorf("decode launch spec: %w", err), j.Close())
	}
	work := events.Event{Subject: p.launch.Execution, Attempt: p.launch.Attempt, Traceparent: p.launch.Traceparent}
	a := newAttempt(r, work, spec)
	a.past, a.journal = p, j
	if _, err := os.Stat(filepath.Join(folder, protocol.StartingFile)); err == nil {
		a.past.claimed = true // Of a machine that lost its power, the last entries of the journal may not be there.
	}
	return a, nil
}

// adopt lets an attempt go on.
func (r *Runner) adopt(a *attempt) {
	r.mu.Lock()
	if a.past.isLate() {
		a.hasEar = take(r.ears)
	} else {
		a.hasSlot = take(r.slots) // More than there are slots now: it runs all the same.
	}
	if c, ok := r.cancels.get(a.work.Subject, time.Now()); ok {
		a.cancel(c)
	}
	r.known.add(a.key, struct{}{}, time.Now())
	r.attempts[a.key] = a
	a.claimed = true
	r.busy.Add(1)
	r.count(a, 1)
	r.mu.Unlock()
	a.log.Info("attempt goes on after a restart", "facts", a.past.acked)
	go r.run(a)
}
