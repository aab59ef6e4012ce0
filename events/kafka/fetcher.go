package kafka

import (
	"context"
	"errors"
	"time"
)

// fetched is one response: its records, and the offset that they reach to. That is behind the last of them where the log goes on with what is no
// record: the marker that ends a transaction, say.
type fetched struct {
	records []*Record
	next    int64
}

// fetcher reads ahead of the deliverer by one response.
type fetcher struct {
	partition *partition
	cursor    *cursor
}

// alarmInterval is how often a stopped partition is looked at again, and reported.
const alarmInterval = 30 * time.Second

func (f *fetcher) run(ctx context.Context) {
	var wait pause
	failing := false
	for ctx.Err() == nil {
		before := f.cursor.next
		records, err := f.cursor.read(ctx)
		if len(records) > 0 || before >= 0 && f.cursor.next > before {
			select {
			case f.partition.fetched <- fetched{records, f.cursor.next}:
			case <-ctx.Done():
				return
			}
		}
		if err == nil {
			wait, failing = pause{}, false
			continue
		}
		if ctx.Err() != nil || !f.failed(ctx, err, &failing, &wait) {
			return
		}
	}
}

// failed logs, alarms and rests; false when the fetcher should end.
func (f *fetcher) failed(ctx context.Context, err error, failing *bool, wait *pause) bool {
	p := f.partition
	options := p.sub.subscriber.options
	var lost *OffsetError
	switch {
	case errors.As(err, &lost):
		p.log.ErrorContext(ctx, "partition lost records", "error", err, "skip", options.SkipLost)
		options.OnAlarm(p.sub.topic, p.id, err)
		if options.SkipLost && lost.Offset < lost.First {
			f.cursor.next = lost.First
			return true
		}
		return rest(ctx, alarmInterval)
	case errors.Is(err, errStuck):
		p.log.ErrorContext(ctx, "partition cannot be read", "error", err)
		options.OnAlarm(p.sub.topic, p.id, err)
		return rest(ctx, alarmInterval)
	case staleMetadata(err):
		p.sub.subscriber.link.refresh()
	}
	if !*failing {
		p.log.WarnContext(ctx, "fetch failed, trying again", "error", err)
		*failing = true
	}
	return wait.sleep(ctx)
}

func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
