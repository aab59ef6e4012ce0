package files

import (
	"context"
	"errors"
	"fmt"
	"time"

	"verbatim.dev/services/artifact"
)

// archiveErased is how long the archive may take to catch up before the message is tried again.
const archiveErased = time.Minute

// erase removes all objects of an execution. The archive has erased it before: who makes its artifacts from now on finds nothing to make,
// and who makes them at the moment is waited for.
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
	var keys []string
	err = r.Store.List(ctx, folder, func(o artifact.Object) error {
		keys = append(keys, o.Key)
		return nil
	})
	if err == nil {
		err = r.Store.Delete(ctx, keys...)
	}
	if err != nil {
		return fmt.Errorf("erase artifacts of %s: %w", id, err)
	}
	return nil
}
