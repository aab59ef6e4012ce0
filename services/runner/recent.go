package runner

import "time"

// recent remembers values by key, each for a time and not more than a number of them; the oldest go first. The first
// value of a key stays. It is not safe for concurrent use.
type recent[V any] struct {
	age    time.Duration
	limit  int
	values map[string]V
	order  []remembered
}

type remembered struct {
	key string
	at  time.Time
}

func newRecent[V any](age time.Duration, limit int) *recent[V] {
	return &recent[V]{age: age, limit: limit, values: make(map[string]V)}
}

// add remembers a value and reports whether one that was not too old yet had to go for it.
func (r *recent[V]) add(key string, value V, now time.Time) (crowded bool) {
	r.expire(now)
	if _, known := r.values[key]; known {
		return false
	}
	if len(r.order) >= r.limit {
		crowded = true
		r.drop(1)
	}
	r.values[key] = value
	r.order = append(r.order, remembered{key, now})
	return crowded
}

func (r *recent[V]) get(key string, now time.Time) (V, bool) {
	r.expire(now)
	v, ok := r.values[key]
	return v, ok
}

func (r *recent[V]) expire(now time.Time) {
	n := 0
	for n < len(r.order) && now.Sub(r.order[n].at) >= r.age {
		n++
	}
	r.drop(n)
}

func (r *recent[V]) drop(n int) {
	for _, old := range r.order[:n] {
		delete(r.values, old.key)
	}
	clear(r.order[:n])
	r.order = r.order[n:]
}
