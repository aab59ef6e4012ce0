package execution

import (
	"runtime"
	"testing"
	"time"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// What a state is said to take is about what it takes: few large chunks, and many small ones, whose bytes are the least of it. This test
// does not run beside others, since it looks at the whole heap.
func TestSize(t *testing.T) {
	const id = "019366e0-7c00-7000-8000-000000000001"
	for name, chunks := range map[string]struct{ n, bytes int }{"large": {100, 4096}, "small": {2048, 16}} {
		var es []events.Event
		for i := range chunks.n {
			e, err := events.Producer{Name: "runner", Source: "/verbatim/runner/r"}.Event(id, 1, uint64(i+1), time.Time{}, &executionv1.OutputChunk{
				Stream: executionv1.Stream_STREAM_STDOUT, Offset: uint64(i * chunks.bytes), Data: make([]byte, chunks.bytes),
			})
			if err != nil {
				t.Fatal(err)
			}
			es = append(es, e)
		}
		states := make([]*State, 10)
		before := live()
		for i := range states {
			states[i] = New(id)
			for _, e := range es {
				states[i].Apply(e, time.Time{})
			}
		}
		is, said := (live()-before)/len(states), states[0].Size()
		runtime.KeepAlive(states)
		runtime.KeepAlive(es)
		if said < is/2 || said > 2*is+stateBytes {
			t.Errorf("%s: a state of %d bytes is said to have %d", name, is, said)
		}
	}
}

func live() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
