package kafka

import "sort"

// window is what one partition has handed out and not yet left behind, in order of offset. It answers
// three questions: may another be handed out, which one is next to be handed out again, and up to where
// everything is acknowledged. It does no I/O and is not safe for concurrent use.
//
// Offsets may have holes (compacted topics, transaction markers); only their order matters.
type window[T any] struct {
	slots []slot[T]
	// waits counts the slots in state waiting.
	waits int
	// done is the offset after the last slot left behind: everything below it is acknowledged.
	done int64
}

type slotState uint8

const (
	inFlight     slotState = iota // handed out, no answer yet
	waiting                       // to be handed out again
	acknowledged                  // answered, but something below is not
)

type slot[T any] struct {
	offset int64
	state  slotState
	item   T
}

// newWindow begins at the offset that will be handed out first.
func newWindow[T any](from int64) *window[T] { return &window[T]{done: from} }

// size is the number of offsets between the oldest unacknowledged one and the newest handed out.
func (w *window[T]) size() int { return len(w.slots) }

// add hands out a new offset, which must be above all others.
func (w *window[T]) add(offset int64, item T) {
	if offset < w.done || len(w.slots) > 0 && offset <= w.slots[len(w.slots)-1].offset {
		panic("kafka: offsets are handed out in order")
	}
	w.slots = append(w.slots, slot[T]{offset: offset, item: item})
}

func (w *window[T]) find(offset int64) *slot[T] {
	if len(w.slots) > 0 && w.slots[0].offset == offset {
		return &w.slots[0] // nearly always
	}
	i := sort.Search(len(w.slots), func(i int) bool { return w.slots[i].offset >= offset })
	if i == len(w.slots) || w.slots[i].offset != offset {
		return nil
	}
	return &w.slots[i]
}

// ack acknowledges an offset in flight; anything else is ignored. It reports whether done moved.
func (w *window[T]) ack(offset int64) bool {
	s := w.find(offset)
	if s == nil || s.state != inFlight {
		return false
	}
	s.state = acknowledged
	var none T
	s.item = none // A record that is settled is not held in memory until those before it are.
	n := 0
	for n < len(w.slots) && w.slots[n].state == acknowledged {
		w.done = w.slots[n].offset + 1
		n++
	}
	clear(w.slots[:n])
	w.slots = w.slots[n:]
	return n > 0
}

// nack puts back an offset in flight and every one behind it that is in flight; it returns their items in order.
func (w *window[T]) nack(offset int64) []T {
	if s := w.find(offset); s == nil || s.state != inFlight {
		return nil
	}
	var back []T
	for i := range w.slots {
		if s := &w.slots[i]; s.offset >= offset && s.state == inFlight {
			s.state = waiting
			w.waits++
			back = append(back, s.item)
		}
	}
	return back
}

// next returns the lowest offset that waits to be handed out again.
func (w *window[T]) next() (offset int64, item T, ok bool) {
	if w.waits == 0 {
		return 0, item, false
	}
	for i := range w.slots {
		if s := &w.slots[i]; s.state == waiting {
			return s.offset, s.item, true
		}
	}
	return 0, item, false
}

// waiting calls f for everything that waits, in order, until it returns false.
func (w *window[T]) waiting(f func(offset int64, item T) bool) {
	for _, s := range w.slots {
		if s.state == waiting && !f(s.offset, s.item) {
			return
		}
	}
}

// again hands out an offset that waits.
func (w *window[T]) again(offset int64, item T) {
	if s := w.find(offset); s != nil && s.state == waiting {
		s.state, s.item = inFlight, item
		w.waits--
	}
}

// head returns the oldest slot's item when it is in flight.
func (w *window[T]) head() (offset int64, item T, ok bool) {
	if len(w.slots) == 0 || w.slots[0].state != inFlight {
		return 0, item, false
	}
	return w.slots[0].offset, w.slots[0].item, true
}

// flying calls f for everything in flight, in order, until it returns false.
func (w *window[T]) flying(f func(offset int64, item T) bool) {
	for _, s := range w.slots {
		if s.state == inFlight && !f(s.offset, s.item) {
			return
		}
	}
}
