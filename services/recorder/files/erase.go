package files

import (
	"context"
	"errors"
	"fmt"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
)

// archiveErased is how long the archive may take to catch up before the message is tried again.
const archiveErased = time.Minute

// erase removes all objects of an execution. The archive has the deletion before: who makes its artifacts from now on finds that, and who
// makes them at the moment is waited for.
func (r *Recorder) erase(ctx context.Context, id string, partition int) error {
	folder, err := artifact.ExecutionFolder(id)
	if err != nil {
		return nil //nolint:nilerr // There is no such execution.
	}
	if !r.Barrier.Wait(ctx, partition, archiveErased) {
		return errors.New("erase artifacts: the archive is behind the log")
	}
	r.mu.Lock()
	var busy []*attempt
	for name, a := range r.known {
		if name.ID == id {
			busy = append(busy, a)
		}
	}
	r.mu.Unlock()
	for _, a := range busy {
		a.writing.Lock()
		a.parted = nil
		a.writing.Unlock()
	}
	return r.remove(ctx, folder)
}

// deleted says whether an attempt's execution was deleted, and then removes its objects. The archive may still have late facts of it to make
// some of. Who makes objects asks before and after: a member that lost the partition may go on without knowing, and finish an object
// when the one that has it now has erased all that there was; but by then the archive has the deletion. With a.writing.
func (r *Recorder) deleted(ctx context.Context, a *attempt) (bool, error) {
	whole := clickhouse.Attempt{ID: a.name.ID} // The fact belongs to no attempt.
	last, err := r.Archive.LastOffsets(ctx, []clickhouse.Attempt{whole}, events.TypeExecutionDeleted)
	if _, ok := last[whole]; err != nil || !ok {
		return false, err
	}
	folder, err := artifact.ExecutionFolder(a.name.ID)
	if err != nil {
		return false, err
	}
	a.parted = nil
	return true, r.remove(ctx, folder)
}

// remove removes all objects in a folder.
func (r *Recorder) remove(ctx context.Context, folder string) error {
	var keys []string
	err := r.Store.List(ctx, folder, func(o artifact.Object) error {
		keys = append(keys, o.Key)
		return nil
	})
	if err == nil {
		err = r.Store.Delete(ctx, keys...)
	}
	if err != nil {
		return fmt.Errorf("erase artifacts %s: %w", folder, err)
	}
	return nil
}
