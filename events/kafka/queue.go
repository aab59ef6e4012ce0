package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// entry is one record on its way to the log.
type entry struct {
	key     []byte
	value   []byte
	headers []kafkago.Header
	time    time.Time
	size    int
	lane    *lane

	done chan struct{}
	err  error // written before done is closed
}

// lane is what one Publish call put into one queue. When one of its entries fails, those behind it fail too, so
// that what got through is always a head and the caller can send the tail again in order.
type lane struct {
	ctx     context.Context
	queue   *queue
	entries []*entry
	err     error // touched by the queue's worker only
}

func (e *entry) finish(err error) {
	if err != nil && e.lane.err == nil {
		e.lane.err = err
	}
	e.err = err
	close(e.done)
}

// wait returns when the entry is settled or its call's context ends. In the latter case the outcome is
// unknown unless the entry is still queued.
func (e *entry) wait() error {
	select {
	case <-e.done:
		return e.err
	case <-e.lane.ctx.Done():
	}
	if e.lane.queue.remove(e) {
		return fmt.Errorf("not sent: %w", context.Cause(e.lane.ctx))
	}
	select {
	case <-e.done:
		return e.err
	default:
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, context.Cause(e.lane.ctx))
	}
}

// queue holds the entries of one partition in order.
type queue struct {
	key  partitionKey
	wake chan struct{} // holds a token when entries were added

	mu      sync.Mutex
	entries []*entry
	bytes   int
}

func newQueue(k partitionKey) *queue {
	return &queue{key: k, wake: make(chan struct{}, 1)}
}

func (q *queue) put(entries []*entry) {
	q.mu.Lock()
	q.entries = append(q.entries, entries...)
	for _, e := range entries {
		q.bytes += e.size
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// size returns what waits.
func (q *queue) size() (entries, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries), q.bytes
}

// oldest returns when the first entry was made; the zero time when there is none.
func (q *queue) oldest() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 {
		return time.Time{}
	}
	return q.entries[0].time
}

// take removes the next batch: at least one entry, then up to the limits.
func (q *queue) take(maxEntries, maxBytes int) []*entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.entries) && n < maxEntries && (n == 0 || size+q.entries[n].size <= maxBytes) {
		size += q.entries[n].size
		n++
	}
	batch := q.entries[:n:n]
	q.entries = q.entries[n:]
	if len(q.entries) == 0 {
		q.entries = nil
	}
	q.bytes -= size
	return batch
}

// back puts a batch in front again.
func (q *queue) back(batch []*entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.entries = append(append(make([]*entry, 0, len(batch)+len(q.entries)), batch...), q.entries...)
	for _, e := range batch {
		q.bytes += e.size
	}
}

// remove takes an entry out; false when it is no longer queued.
func (q *queue) remove(e *entry) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, x := range q.entries {
		if x == e {
			rest := make([]*entry, 0, len(q.entries)-1)
			q.entries = append(append(rest, q.entries[:i]...), q.entries[i+1:]...)
			q.bytes -= e.size
			return true
		}
	}
	return false
}

// worker writes one queue, one batch at a time.
type worker struct {
	publisher *Publisher
	queue     *queue
	limit     int // bytes per batch; halved when the broker finds batches too large
}

func (w *worker) run() {
	p := w.publisher
	var wait pause
	for {
		if n, _ := w.queue.size(); n == 0 {
			select {
			case <-w.queue.wake:
				continue
			case <-p.aborted.Done():
				w.drain()
				return
			}
		}
		w.linger()
		batch := w.alive(w.queue.take(p.options.BatchMessages, w.limit))
		if len(batch) == 0 {
			continue
		}
		if w.settle(batch, w.write(batch)) {
			wait = pause{}
			continue
		}
		if !wait.sleep(p.aborted) {
			w.drain()
			return
		}
	}
}

// linger waits until a batch is full, its first entry has waited for the linger time, or the publisher closes.
func (w *worker) linger() {
	o := w.publisher.options
	left := o.Linger - time.Since(w.queue.oldest())
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for {
		if n, size := w.queue.size(); n >= o.BatchMessages || size >= w.limit {
			return
		}
		select {
		case <-w.queue.wake:
		case <-timer.C:
			return
		case <-w.publisher.flushed:
			return
		}
	}
}

// alive finishes the entries nobody waits for any more, and those behind a failed one of their call.
func (w *worker) alive(batch []*entry) []*entry {
	kept := batch[:0]
	for _, e := range batch {
		switch {
		case e.lane.err != nil:
			e.finish(fmt.Errorf("not sent behind a message that failed: %w", e.lane.err))
		case e.lane.ctx.Err() != nil:
			e.finish(fmt.Errorf("not sent: %w", context.Cause(e.lane.ctx)))
		default:
			kept = append(kept, e)
		}
	}
	return kept
}

func (w *worker) drain() {
	n, _ := w.queue.size()
	for _, e := range w.queue.take(n, int(^uint(0)>>1)) {
		e.finish(ErrClosed)
	}
}

// settle finishes the batch after a write, or puts it back in front when it is to be written again;
// then it returns false.
func (w *worker) settle(batch []*entry, err error) bool {
	p := w.publisher
	log := p.config.logger()
	switch {
	case err == nil:
		for _, e := range batch {
			e.finish(nil)
		}
		return true
	case tooLarge(err) && len(batch) > 1:
		size := 0
		for _, e := range batch {
			size += e.size
		}
		w.limit = max(1, min(w.limit, size)/2)
		log.Warn("broker finds batches too large, they are made smaller", "topic", w.queue.key.topic, "batch_bytes", w.limit)
		w.queue.back(batch)
		return true
	case tooLarge(err):
		batch[0].finish(fmt.Errorf("%w for topic or broker: %d bytes", ErrTooLarge, batch[0].size))
		return true
	case retriable(err) && p.aborted.Err() == nil:
		if staleMetadata(err) {
			p.link.refresh()
		}
		log.Debug("write is tried again", "topic", w.queue.key.topic, "partition", w.queue.key.partition, "error", err)
		w.queue.back(w.waitedFor(batch, err))
		return false
	default:
		for _, e := range batch {
			e.finish(err)
		}
		return true
	}
}

// waitedFor finishes the entries whose call ended while they were on their way.
func (w *worker) waitedFor(batch []*entry, err error) []*entry {
	kept := make([]*entry, 0, len(batch))
	for _, e := range batch {
		if e.lane.ctx.Err() != nil {
			e.finish(fmt.Errorf("%w: %w", ErrUnknownOutcome, err))
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// write sends one batch and waits for the acknowledgement of all in-sync replicas.
func (w *worker) write(batch []*entry) error {
	p := w.publisher
	ctx, cancel := context.WithTimeout(p.aborted, requestTimeout)
	defer cancel()
	res, err := p.link.client.Produce(ctx, &kafkago.ProduceRequest{
		Topic: w.queue.key.topic, Partition: w.queue.key.partition, RequiredAcks: kafkago.RequireAll,
		Compression: codecs[p.options.Compression], Records: &recordReader{entries: batch},
	})
	if err != nil {
		if p.aborted.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrClosed)
		}
		return fmt.Errorf("write batch: %w", err)
	}
	if res.Error != nil {
		err := res.Error
		for _, cause := range res.RecordErrors {
			err = errors.Join(err, cause)
		}
		return fmt.Errorf("write batch: %w", err)
	}
	return nil
}

// recordReader gives a batch to kafka-go record by record.
type recordReader struct {
	entries []*entry
	record  kafkago.Record
}

func (r *recordReader) ReadRecord() (*kafkago.Record, error) {
	if len(r.entries) == 0 {
		return nil, io.EOF
	}
	e := r.entries[0]
	r.entries = r.entries[1:]
	r.record = kafkago.Record{Time: e.time, Headers: e.headers}
	if e.key != nil {
		r.record.Key = &byteSource{bytes.NewReader(e.key)}
	}
	if e.value != nil {
		r.record.Value = &byteSource{bytes.NewReader(e.value)}
	}
	return &r.record, nil
}

type byteSource struct{ *bytes.Reader }

func (byteSource) Close() error { return nil }

var _ protocol.Bytes = byteSource{}

// pause grows from 10 ms to 1 s, with jitter, so that clients of a broker that comes back do not arrive
// together.
type pause struct{ next time.Duration }

// sleep waits; false when ctx ended.
func (p *pause) sleep(ctx context.Context) bool {
	const first, most = 10 * time.Millisecond, time.Second
	p.next = max(first, min(p.next*2, most))
	t := time.NewTimer(p.next/2 + rand.N(p.next/2))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
