package watchdog

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/claim"
)

// A runner claims an attempt by committing its place in the queue of work, and tells everybody with ProcessStarted or its next heartbeat.
// When it dies in between, nobody else takes the attempt and nothing is said about it. So attempts that wait for longer than most do
// are looked up in the queue: those that the runners' group has passed are claimed, and their silence counts from when that is seen.

const (
	// runners is the service whose offsets say what is claimed.
	runners = "runner"
	// unusual is how long an attempt may be prepared before it is looked up. It is also the time between two searches.
	unusual = 5 * time.Second
	// apart is how far the times of a Prepared in the queue and of the same in the log of facts may be from each other.
	apart = 5 * time.Second
	// notQueued stands for a place in the queue that was not found: then only start_by closes the attempt.
	notQueued = -1
)

// taken says whether the queue's group has passed a prepared attempt, and notes it. Who committed is known for the last owners.
func (w *Watchdog) taken(key uuid.UUID, o *entry, now time.Duration, claims map[int]kafka.Commit) bool {
	last := claims[kafka.PartitionFor([]byte(key.String()), w.queues)]
	if last.Offset < o.work {
		return false
	}
	o.stage, o.listed = claimed, now
	if id := claim.Owner(last, o.work-1); id != "" && (w.runners[id] != nil || len(w.runners) < maxRunners) {
		o.runner = w.runner(id)
	}
	return true
}

// queued finds the places of attempts that wait for long.
func (w *Watchdog) queued(ctx context.Context, now time.Duration) error {
	if now-w.searched < unusual {
		return nil
	}
	w.searched = now
	wanted, oldest := w.waiting(now)
	if len(wanted) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ends, err := w.admin.EndOffsets(ctx, events.TopicWork)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.queues = len(ends)
	w.mu.Unlock()
	byPartition := map[int]map[uuid.UUID]entry{}
	for key, o := range wanted {
		partition := kafka.PartitionFor([]byte(key.String()), len(ends))
		if byPartition[partition] == nil {
			byPartition[partition] = map[uuid.UUID]entry{}
		}
		byPartition[partition][key] = o
	}
	starts, err := w.admin.OffsetsAt(ctx, events.TopicWork, time.UnixMilli(oldest).Add(-apart))
	if err != nil {
		return err
	}
	for partition, wanted := range byPartition {
		if err := w.search(ctx, partition, starts[partition], ends[partition], wanted); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // The rest is found next time, from a later start.
			}
			return err
		}
	}
	return nil
}

// waiting are the attempts whose place is wanted, at most so many, and when the oldest of them was prepared.
func (w *Watchdog) waiting(now time.Duration) (wanted map[uuid.UUID]entry, oldest int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted = map[uuid.UUID]entry{}
	for key, o := range w.open {
		if o.stage != prepared || o.work != 0 || o.preparedAt == 0 || now-o.listed < unusual {
			continue
		}
		wanted[key] = o
		if oldest == 0 || o.preparedAt < oldest {
			oldest = o.preparedAt
		}
		if len(wanted) == most {
			break
		}
	}
	return wanted, oldest
}

// search reads [from, end) of a partition of the queue and notes where the wanted attempts are.
func (w *Watchdog) search(ctx context.Context, partition int, from, end int64, wanted map[uuid.UUID]entry) error {
	reader, err := kafka.NewPartitionReader(w.c.Kafka, events.TopicWork, partition, from)
	if err != nil {
		return err
	}
	defer reader.Close()
	for record, err := range reader.Until(ctx, end) {
		if err != nil {
			return fmt.Errorf("read work: %w", err)
		}
		if len(wanted) == 0 {
			break
		}
		key, err := uuid.ParseBytes(record.Key)
		if err != nil {
			continue
		}
		o, ok := wanted[key]
		if !ok {
			continue
		}
		e, err := codec.FromMessage(record.Message())
		if _, prepared := e.Data.(*executionv1.Prepared); err != nil || !prepared || e.Attempt != o.attempt {
			continue
		}
		w.place(key, o, record.Offset+1)
		delete(wanted, key) // What was written twice counts from the first time on.
	}
	for key, o := range wanted {
		w.place(key, o, notQueued)
	}
	return nil
}

func (w *Watchdog) place(key uuid.UUID, o entry, at int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[key] == o {
		o.work = at
		w.open[key] = o
	}
}
