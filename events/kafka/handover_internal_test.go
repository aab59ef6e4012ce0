package kafka

import "testing"

// However large messages are, so many bytes are in flight, and one message always is.
func TestBytesInFlightAreBounded(t *testing.T) {
	t.Parallel()
	p := &partition{window: newWindow[*delivery](0)}
	for range 10 {
		p.pending = append(p.pending, &Record{Value: make([]byte, 100)})
	}
	for limit, want := range map[int]int{1: 1, 100: 1, 250: 2, 1000: 10, 5000: 10} {
		if got := p.fitting(len(p.pending), limit); got != want {
			t.Errorf("with %d bytes allowed %d messages of 100 are handed out, want %d", limit, got, want)
		}
	}
	p.window.add(0, &delivery{record: &Record{Value: make([]byte, 100)}})
	if got := p.fitting(len(p.pending), 250); got != 1 {
		t.Errorf("beside one in flight: %d, want 1", got)
	}
	if got := p.fitting(len(p.pending), 50); got != 0 {
		t.Errorf("above the limit: %d, want none", got)
	}
	p.window.ack(0)
	if got := p.fitting(len(p.pending), 50); got != 1 {
		t.Errorf("with none in flight: %d, want 1", got)
	}
}
