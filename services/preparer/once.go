package preparer

import (
	"errors"
	"sync"
)

// once remembers what was done, the newest onceLimit.
type once struct {
	mu    sync.Mutex
	state map[string]bool // Whether it is done; else it is under way.
	done  []string        // In the order in which it was done.
}

const onceLimit = 10_000

// errBusy says that another delivery of the same message is being handled. It is tried again.
var errBusy = errors.New("another delivery of it is being handled")

func newOnce() *once { return &once{state: map[string]bool{}} }

// do does something unless that was done. What failed may be done again.
func (o *once) do(id string, something func() error) error {
	o.mu.Lock()
	done, known := o.state[id]
	if !known {
		o.state[id] = false
	}
	o.mu.Unlock()
	switch {
	case done:
		return nil
	case known:
		return errBusy
	}
	ok := false
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if !ok { // Also after a panic.
			delete(o.state, id)
			return
		}
		o.state[id] = true
		if o.done = append(o.done, id); len(o.done) > onceLimit {
			delete(o.state, o.done[0])
			o.done = o.done[1:]
		}
	}()
	err := something()
	ok = err == nil
	return err
}
