package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// Topic is what a topic should be.
type Topic struct {
	Name       string
	Partitions int
	// Config holds Kafka's topic settings; used when the topic is created.
	Config map[string]string
}

// checkTimeout bounds what is asked at start-up.
const checkTimeout = 10 * time.Second

// Admin asks a cluster about topics and offsets; safe for concurrent use.
type Admin struct {
	config Config
	link   *link
}

// NewAdmin checks the configuration; it connects with the first question.
func NewAdmin(c Config) (*Admin, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("kafka admin: %w", err)
	}
	return &Admin{config: c, link: newLink(c)}, nil
}

// Close releases the connections.
func (a *Admin) Close() error {
	a.link.close()
	return nil
}

// EnsureTopics creates the topics that are missing and then checks all, within 10 s. A topic that exists
// is not changed: a wrong partition count is an error.
func EnsureTopics(ctx context.Context, c Config, topics []Topic) error {
	return withAdmin(c, func(a *Admin) error { return a.EnsureTopics(ctx, topics) })
}

// CheckTopics reports within 10 s an unreachable broker, and every topic that is missing or has another
// partition count.
func CheckTopics(ctx context.Context, c Config, topics []Topic) error {
	return withAdmin(c, func(a *Admin) error { return a.CheckTopics(ctx, topics) })
}

func withAdmin(c Config, do func(*Admin) error) error {
	a, err := NewAdmin(c)
	if err != nil {
		return err
	}
	return errors.Join(do(a), a.Close())
}

// EnsureTopics is the function of the same name on this handle.
func (a *Admin) EnsureTopics(ctx context.Context, topics []Topic) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := a.create(ctx, topics); err != nil {
		return err
	}
	return a.check(ctx, topics)
}

// CheckTopics is the function of the same name on this handle.
func (a *Admin) CheckTopics(ctx context.Context, topics []Topic) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return a.check(ctx, topics)
}

// create makes what does not exist, and returns when the broker knows it: the one that creates a topic answers before
// those that hold it have heard of it, and a busy one takes seconds for many.
func (a *Admin) create(ctx context.Context, topics []Topic) error {
	have, err := a.counts(ctx, topics)
	if err != nil {
		return err
	}
	req := &kafkago.CreateTopicsRequest{}
	for _, t := range topics {
		if _, ok := have[a.config.wireTopic(t.Name)]; ok {
			continue
		}
		tc := kafkago.TopicConfig{Topic: a.config.wireTopic(t.Name), NumPartitions: t.Partitions, ReplicationFactor: -1}
		for _, k := range slices.Sorted(maps.Keys(t.Config)) {
			tc.ConfigEntries = append(tc.ConfigEntries, kafkago.ConfigEntry{ConfigName: k, ConfigValue: t.Config[k]})
		}
		req.Topics = append(req.Topics, tc)
	}
	if len(req.Topics) == 0 {
		return nil
	}
	if err := a.request(ctx, req); err != nil {
		return err
	}
	return a.visible(ctx, topics)
}

// request asks for the topics until ctx ends: a broker that makes many may take longer than one request may.
func (a *Admin) request(ctx context.Context, req *kafkago.CreateTopicsRequest) error {
	for wait := (pause{}); ; {
		res, err := a.link.client.CreateTopics(ctx, req)
		if err != nil {
			if retriable(err) && wait.sleep(ctx) {
				continue
			}
			return fmt.Errorf("create topics: %w", err)
		}
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(res.Errors)) {
			err := res.Errors[name]
			switch {
			case err == nil, errors.Is(err, kafkago.TopicAlreadyExists):
			case errors.Is(err, kafkago.RequestTimedOut): // it is being made
			default:
				errs = append(errs, fmt.Errorf("create topic %s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	}
}

// visible waits until the topics, which were just created, can be seen.
func (a *Admin) visible(ctx context.Context, topics []Topic) error {
	for wait := (pause{}); ; {
		have, err := a.counts(ctx, topics)
		if err != nil {
			return err
		}
		missing := a.missing(topics, have)
		if len(missing) == 0 {
			return nil
		}
		a.link.refresh()
		if !wait.sleep(ctx) {
			return fmt.Errorf("topics are created and the broker does not know them yet, try again: %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
	}
}

// missing returns the names on the wire of the topics that are not among have.
func (a *Admin) missing(topics []Topic, have map[string]int) []string {
	var missing []string
	for _, t := range topics {
		if name := a.config.wireTopic(t.Name); have[name] == 0 {
			missing = append(missing, name)
		}
	}
	return missing
}

// check compares the cluster with what should be.
func (a *Admin) check(ctx context.Context, topics []Topic) error {
	have, err := a.counts(ctx, topics)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range topics {
		name := a.config.wireTopic(t.Name)
		switch n, ok := have[name]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%w: %s", ErrUnknownTopic, name))
		case n != t.Partitions:
			errs = append(errs, fmt.Errorf("topic %s has %d partitions, it must have %d", name, n, t.Partitions))
		}
	}
	return errors.Join(errs...)
}

// counts returns the partition counts of those of the topics that exist, by their names on the wire. While no broker
// answers it keeps trying until ctx ends.
func (a *Admin) counts(ctx context.Context, topics []Topic) (map[string]int, error) {
	req := &kafkago.MetadataRequest{Topics: make([]string, len(topics))}
	for i, t := range topics {
		req.Topics[i] = a.config.wireTopic(t.Name)
	}
	var telling error // That time ran out tells less than why it did.
	for wait := (pause{}); ; {
		res, err := a.link.client.Metadata(ctx, req)
		if err == nil {
			return countsOf(res)
		}
		if telling == nil || !errors.Is(err, context.DeadlineExceeded) {
			telling = err
		}
		if !retriable(err) {
			return nil, unreachable(a.config, telling)
		}
		a.link.refresh()
		if !wait.sleep(ctx) {
			return nil, unreachable(a.config, telling)
		}
	}
}

func countsOf(res *kafkago.MetadataResponse) (map[string]int, error) {
	have := make(map[string]int, len(res.Topics))
	for _, t := range res.Topics {
		switch {
		case len(t.Partitions) > 0:
			have[t.Name] = len(t.Partitions)
		case t.Error != nil && !staleMetadata(t.Error):
			return nil, fmt.Errorf("topic %s: %w", t.Name, t.Error)
		}
	}
	return have, nil
}

// unreachable says what a person can do about it. Some brokers hang up on wrong credentials and say nothing.
func unreachable(c Config, err error) error {
	hint := "is the address right, and a broker up?"
	hungUp := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case errors.Is(err, kafkago.SASLAuthenticationFailed), hungUp && c.Security.Mechanism != "":
		hint = "are user name, password and mechanism right?"
	case hungUp && c.Security.TLS == nil:
		hint = "does the broker want TLS?"
	}
	return fmt.Errorf("no answer from kafka at %s (%s): %w", strings.Join(c.Brokers, ", "), hint, err)
}

// Leave takes a member out of a topic's group that was killed and cannot do it: until its session times out, whoever joins waits for it.
// A member that the group does not know (any more) is none.
func (a *Admin) Leave(ctx context.Context, group, topic, member string) error {
	ctx, cancel := context.WithTimeout(ctx, coordinatorTimeout)
	defer cancel()
	res, err := a.link.client.LeaveGroup(ctx, &kafkago.LeaveGroupRequest{
		GroupID: a.config.wireGroup(group, topic), Members: []kafkago.LeaveGroupRequestMember{{ID: member}},
	})
	if err == nil {
		err = res.Error
	}
	if err == nil {
		for _, m := range res.Members {
			err = errors.Join(err, m.Error)
		}
	}
	if err != nil && !errors.Is(err, kafkago.UnknownMemberId) {
		return fmt.Errorf("leave group of %s for member %s: %w", topic, member, err)
	}
	return nil
}

// EndOffsets returns, per partition, the offset the next record will get.
func (a *Admin) EndOffsets(ctx context.Context, topic string) (map[int]int64, error) {
	return a.offsets(ctx, topic, func(int) kafkago.OffsetRequest { return kafkago.OffsetRequest{Timestamp: Last} })
}

// FirstOffsets returns, per partition, the lowest offset still there.
func (a *Admin) FirstOffsets(ctx context.Context, topic string) (map[int]int64, error) {
	return a.offsets(ctx, topic, func(int) kafkago.OffsetRequest { return kafkago.OffsetRequest{Timestamp: First} })
}

// OffsetsAt returns, per partition, the offset of the first record whose timestamp is t or later; the end
// offset when there is none.
func (a *Admin) OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int]int64, error) {
	at, err := a.offsets(ctx, topic, func(n int) kafkago.OffsetRequest { return kafkago.TimeOffsetOf(n, t) })
	if err != nil {
		return nil, err
	}
	end, err := a.EndOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	for n, offset := range at {
		if offset < 0 {
			at[n] = end[n]
		}
	}
	return at, nil
}

// leaderGrace is how long a partition may have no leader, or another one than the client knows, before that is said: it is so for
// a moment when a topic was just created and when a broker went, and for many seconds on a busy machine. Contexts are often shorter.
const leaderGrace = 30 * time.Second

func (a *Admin) offsets(ctx context.Context, topic string, ask func(partition int) kafkago.OffsetRequest) (map[int]int64, error) {
	began := time.Now()
	for wait := (pause{}); ; {
		offsets, err := a.offsetsOnce(ctx, topic, ask)
		if err == nil || !staleMetadata(err) || errors.Is(err, ErrUnknownTopic) || time.Since(began) > leaderGrace {
			return offsets, err
		}
		a.link.refresh()
		if !wait.sleep(ctx) {
			return nil, err
		}
	}
}

func (a *Admin) offsetsOnce(ctx context.Context, topic string, ask func(partition int) kafkago.OffsetRequest) (map[int]int64, error) {
	wire := a.config.wireTopic(topic)
	n, err := a.partitions(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	requests := make([]kafkago.OffsetRequest, n)
	for i := range requests {
		requests[i] = ask(i)
		requests[i].Partition = i
	}
	res, err := a.link.client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{wire: requests}})
	if err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	offsets := make(map[int]int64, n)
	for _, p := range res.Topics[wire] {
		if p.Error != nil {
			return nil, fmt.Errorf("offsets of %s/%d: %w", topic, p.Partition, p.Error)
		}
		switch requests[p.Partition].Timestamp {
		case First:
			offsets[p.Partition] = p.FirstOffset
		case Last:
			offsets[p.Partition] = p.LastOffset
		default:
			offsets[p.Partition] = -1
			for offset := range p.Offsets {
				offsets[p.Partition] = offset
			}
		}
	}
	if len(offsets) != n {
		return nil, fmt.Errorf("offsets of %s: the broker answered for %d of %d partitions", topic, len(offsets), n)
	}
	return offsets, nil
}

// partitions returns the topic's partition count.
func (a *Admin) partitions(ctx context.Context, topic string) (int, error) {
	began := time.Now()
	for wait := (pause{}); ; {
		n, err := a.link.partitions(ctx, a.config.wireTopic(topic))
		switch {
		case err == nil:
			return n, nil
		case missingTopic(err) && time.Since(began) > missingTopicGrace:
			return 0, ErrUnknownTopic
		case !retriable(err) && !missingTopic(err):
			return 0, err
		}
		a.link.refresh()
		if !wait.sleep(ctx) {
			return 0, unreachable(a.config, err)
		}
	}
}

// CommittedOffsets returns, per partition, the offset the service's group will go on from; partitions without
// a commit are left out.
func (a *Admin) CommittedOffsets(ctx context.Context, group, topic string) (map[int]int64, error) {
	commits, err := a.Commits(ctx, group, topic)
	if err != nil {
		return nil, err
	}
	offsets := make(map[int]int64, len(commits))
	for partition, c := range commits {
		offsets[partition] = c.Offset
	}
	return offsets, nil
}

// Commit is what a group last committed for a partition.
type Commit struct {
	// Offset is what the group will go on from.
	Offset int64
	// Metadata is what SubscriberOptions.CommitMetadata gave who committed.
	Metadata string
}

// Commits returns the last commit per partition; partitions without one are left out.
func (a *Admin) Commits(ctx context.Context, group, topic string) (map[int]Commit, error) {
	wire := a.config.wireTopic(topic)
	n, err := a.partitions(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("committed offsets of %s: %w", GroupID(group, topic), err)
	}
	ids := make([]int, n)
	for i := range ids {
		ids[i] = i
	}
	commits, err := a.link.commits(ctx, a.config.wireGroup(group, topic), wire, ids)
	if err != nil {
		return nil, fmt.Errorf("committed offsets of %s: %w", GroupID(group, topic), err)
	}
	return commits, nil
}

// commits returns the last commits of a group for partitions of a topic, both by their names on the wire.
func (l *link) commits(ctx context.Context, group, topic string, partitions []int) (map[int]Commit, error) {
	res, err := l.client.OffsetFetch(ctx, &kafkago.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: partitions}})
	if err == nil {
		err = res.Error
	}
	if errors.Is(err, kafkago.GroupIdNotFound) {
		return map[int]Commit{}, nil // what Kafka tells with -1 for every partition
	}
	if err != nil {
		return nil, err
	}
	commits := map[int]Commit{}
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, fmt.Errorf("partition %d: %w", p.Partition, p.Error)
		}
		if p.CommittedOffset >= 0 {
			commits[p.Partition] = Commit{Offset: p.CommittedOffset, Metadata: p.Metadata}
		}
	}
	return commits, nil
}
