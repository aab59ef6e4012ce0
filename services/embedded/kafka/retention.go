package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Retention is applied about twice within the shortest retention.ms, and at least every sweepAtLeast.
const sweepAtLeast, sweepAtMost = time.Minute, time.Second

// janitor applies the topics' retention and looks after the groups' sessions, through the broker's own protocol.
type janitor struct {
	client   *kgo.Client
	sessions *sessions
	log      *slog.Logger
	cancel   context.CancelFunc
	done     chan struct{}
}

func startJanitor(cluster *kfake.Cluster, addr string, log *slog.Logger) (*janitor, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ClientID("verbatim-janitor"))
	if err != nil {
		return nil, fmt.Errorf("janitor's client: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	j := &janitor{client: client, sessions: watchSessions(cluster, log), log: log, cancel: cancel, done: make(chan struct{})}
	go j.run(ctx)
	return j, nil
}

func (j *janitor) run(ctx context.Context) {
	defer close(j.done)
	watched := make(chan struct{})
	go func() { defer close(watched); j.sessions.run(ctx, j.client) }()
	defer func() { <-watched }()
	tick := time.NewTimer(sweepAtMost)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			shortest, err := j.sweep(ctx)
			if err != nil && ctx.Err() == nil {
				j.log.WarnContext(ctx, "retention not applied, trying again", "error", err)
			}
			tick.Reset(min(max(shortest/2, sweepAtMost), sweepAtLeast))
		}
	}
}

func (j *janitor) stop() {
	j.cancel()
	<-j.done
	j.client.Close()
}

// span is a partition's log, the offset where its retention begins, and its size.
type span struct {
	first, end, keep, bytes int64
}

// sweep removes what is past retention, topic by topic, and returns the shortest retention.ms it met.
func (j *janitor) sweep(ctx context.Context) (shortest time.Duration, err error) {
	shortest = time.Hour
	res, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, j.client)
	if err != nil {
		return shortest, fmt.Errorf("list topics: %w", err)
	}
	var errs []error
	for _, t := range res.Topics {
		if t.Topic == nil || t.ErrorCode != 0 {
			continue
		}
		ms, bytes, err := j.limits(ctx, *t.Topic)
		if err == nil && (ms >= 0 || bytes >= 0) {
			err = j.topic(ctx, *t.Topic, len(t.Partitions), ms, bytes)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("topic %s: %w", *t.Topic, err))
		}
		if ms >= 0 {
			shortest = min(shortest, time.Duration(min(ms, time.Hour.Milliseconds()))*time.Millisecond)
		}
	}
	return shortest, errors.Join(errs...)
}

func (j *janitor) topic(ctx context.Context, topic string, partitions int, ms, bytes int64) error {
	spans, err := j.spans(ctx, topic, partitions, ms)
	if err != nil {
		return err
	}
	if bytes >= 0 {
		if err := j.weigh(ctx, topic, spans); err != nil {
			return err
		}
	}
	below := map[int32]int64{}
	for n, s := range spans {
		if to := s.cut(bytes); to > s.first {
			below[n] = to
		}
	}
	return j.remove(ctx, topic, below)
}

// cut is the offset below which records go: past retention.ms, or, by the average size of a record, over
// retention.bytes. The last record stays.
func (s *span) cut(limit int64) int64 {
	to := s.keep
	if n := s.end - s.first; limit >= 0 && n > 0 && s.bytes > limit {
		to = max(to, s.first+(s.bytes-limit)*n/s.bytes)
	}
	return min(to, s.end-1)
}

// limits returns retention.ms and retention.bytes, -1 for none.
func (j *janitor) limits(ctx context.Context, topic string) (ms, bytes int64, err error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	resource.ConfigNames = []string{"retention.ms", "retention.bytes"}
	req.Resources = append(req.Resources, resource)
	res, err := req.RequestWith(ctx, j.client)
	if err != nil {
		return 0, 0, fmt.Errorf("describe: %w", err)
	}
	ms, bytes = -1, -1
	for _, r := range res.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return 0, 0, fmt.Errorf("describe: %w", err)
		}
		for _, c := range r.Configs {
			if c.Value == nil {
				continue
			}
			v, err := strconv.ParseInt(*c.Value, 10, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("setting %s: %w", c.Name, err)
			}
			switch c.Name {
			case "retention.ms":
				ms = v
			case "retention.bytes":
				bytes = v
			}
		}
	}
	return ms, bytes, nil
}

// spans asks for the partitions' first and end offset and for the first one younger than ms.
func (j *janitor) spans(ctx context.Context, topic string, partitions int, ms int64) (map[int32]*span, error) {
	first, err := j.offsets(ctx, topic, partitions, -2)
	if err != nil {
		return nil, err
	}
	end, err := j.offsets(ctx, topic, partitions, -1)
	if err != nil {
		return nil, err
	}
	keep := first
	if ms >= 0 {
		if keep, err = j.offsets(ctx, topic, partitions, time.Now().UnixMilli()-ms); err != nil {
			return nil, err
		}
	}
	spans := map[int32]*span{}
	for n := range first {
		s := &span{first: first[n], end: end[n], keep: keep[n]}
		if s.keep < 0 { // no record is that young
			s.keep = s.end
		}
		spans[n] = s
	}
	return spans, nil
}

// offsets returns, per partition, the offset of the first record at or after a time in milliseconds; -2 and
// -1 stand for the first and the end offset.
func (j *janitor) offsets(ctx context.Context, topic string, partitions int, at int64) (map[int32]int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	for n := range partitions {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition, rp.Timestamp = int32(n), at
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(ctx, j.client)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	offsets := map[int32]int64{}
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("list offsets of partition %d: %w", p.Partition, err)
			}
			offsets[p.Partition] = p.Offset
		}
	}
	return offsets, nil
}

// weigh fills in the partitions' sizes.
func (j *janitor) weigh(ctx context.Context, topic string, spans map[int32]*span) error {
	req := kmsg.NewPtrDescribeLogDirsRequest()
	rt := kmsg.NewDescribeLogDirsRequestTopic()
	rt.Topic = topic
	for n := range spans {
		rt.Partitions = append(rt.Partitions, n)
	}
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(ctx, j.client)
	if err != nil {
		return fmt.Errorf("describe sizes: %w", err)
	}
	for _, d := range res.Dirs {
		if err := kerr.ErrorForCode(d.ErrorCode); err != nil {
			return fmt.Errorf("describe sizes: %w", err)
		}
		for _, t := range d.Topics {
			for _, p := range t.Partitions {
				if s := spans[p.Partition]; s != nil && t.Topic == topic {
					s.bytes = p.Size
				}
			}
		}
	}
	return nil
}

func (j *janitor) remove(ctx context.Context, topic string, below map[int32]int64) error {
	if len(below) == 0 {
		return nil
	}
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	for n, offset := range below {
		rp := kmsg.NewDeleteRecordsRequestTopicPartition()
		rp.Partition, rp.Offset = n, offset
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(ctx, j.client)
	if err != nil {
		return fmt.Errorf("delete records: %w", err)
	}
	var errs []error
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				errs = append(errs, fmt.Errorf("delete records of partition %d: %w", p.Partition, err))
			}
		}
	}
	return errors.Join(errs...)
}
