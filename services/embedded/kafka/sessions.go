package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kfake starts a member's session timer with the answer to its join. A member whose connection is gone by then, because
// its process was killed while it waited to join, gets none: it stays in the group for ever, with the partitions that the
// leader gives it, and nobody reads those. So sessions are watched here too: who is in a stable group and has said nothing for
// longer than the group's session timeout is made to leave.
const (
	sessionInterval = 2 * time.Second
	// sessionSlack leaves the usual end of a session to kfake.
	sessionSlack = 2 * time.Second
	// unknownSession is for a group whose joins came before a restart of the broker: librdkafka's and Java's default.
	unknownSession = 45 * time.Second
)

type member struct{ group, id string }

// sessions knows when each member was heard of last.
type sessions struct {
	log *slog.Logger

	mu       sync.Mutex
	heard    map[member]time.Time
	timeouts map[string]time.Duration // the longest of each group
}

func watchSessions(c *kfake.Cluster, log *slog.Logger) *sessions {
	s := &sessions{log: log, heard: map[member]time.Time{}, timeouts: map[string]time.Duration{}}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		c.ControlKey(key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			s.observe(r)
			return nil, nil, false // Handled as ever.
		})
	}
	return s
}

func (s *sessions) observe(r kmsg.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := r.(type) {
	case *kmsg.JoinGroupRequest:
		s.timeouts[r.Group] = max(s.timeouts[r.Group], time.Duration(r.SessionTimeoutMillis)*time.Millisecond)
		s.heard[member{r.Group, r.MemberID}] = time.Now()
	case *kmsg.SyncGroupRequest:
		s.heard[member{r.Group, r.MemberID}] = time.Now()
	case *kmsg.HeartbeatRequest:
		s.heard[member{r.Group, r.MemberID}] = time.Now()
	}
}

// silent returns the members that have said nothing for too long, and forgets those that are not there any more.
func (s *sessions) silent(groups map[string][]string, now time.Time) (silent []member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[member]time.Time{}
	timeouts := map[string]time.Duration{}
	for group, ids := range groups {
		timeout := s.timeouts[group]
		if timeout == 0 {
			timeout = unknownSession
		}
		timeouts[group] = timeout
		for _, id := range ids {
			m := member{group, id}
			at, known := s.heard[m]
			if !known {
				at = now // From here on.
			}
			there[m] = at
			if now.Sub(at) > timeout+sessionSlack {
				silent = append(silent, m)
			}
		}
	}
	s.heard, s.timeouts = there, timeouts
	return silent
}

func (s *sessions) run(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(sessionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.sweep(ctx, client); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "sessions of groups not looked at, trying again", "error", err)
			}
		}
	}
}

func (s *sessions) sweep(ctx context.Context, client *kgo.Client) error {
	groups, err := members(ctx, client)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range s.silent(groups, time.Now()) {
		s.log.WarnContext(ctx, "a member that died while it joined is taken out of its group", "group", m.group, "member", m.id)
		errs = append(errs, leave(ctx, client, m))
	}
	return errors.Join(errs...)
}

// members lists the members of every stable group; of the others nobody, but their groups.
func members(ctx context.Context, client *kgo.Client) (map[string][]string, error) {
	list, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(list.ErrorCode)
	}
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	groups := map[string][]string{}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	for _, g := range list.Groups {
		if g.ProtocolType != "consumer" {
			continue
		}
		describe.Groups = append(describe.Groups, g.Group)
		groups[g.Group] = nil
	}
	if len(groups) == 0 {
		return groups, nil
	}
	described, err := describe.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("describe groups: %w", err)
	}
	for _, g := range described.Groups {
		if g.ErrorCode != 0 || g.State != "Stable" {
			continue
		}
		for _, m := range g.Members {
			groups[g.Group] = append(groups[g.Group], m.MemberID)
		}
	}
	return groups, nil
}

func leave(ctx context.Context, client *kgo.Client, m member) error {
	r := kmsg.NewPtrLeaveGroupRequest()
	r.Group, r.MemberID = m.group, m.id
	one := kmsg.NewLeaveGroupRequestMember()
	one.MemberID = m.id
	r.Members = append(r.Members, one)
	answer, err := r.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(answer.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("make member %s leave group %s: %w", m.id, m.group, err)
	}
	return nil
}
