package wiring

import (
	"context"
	"os"
	"path/filepath"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/runner/journal"
)

// A runner that was killed is a member of its group until its session times out, and who joins waits for it: its own next worker, too. So the
// name of the member is in the data folder, and the next one takes it out of the group. The folder is locked, so nobody else is that member.

// memberFile is where the name is.
const memberFile = "member"

// rememberMember writes the name down.
func rememberMember(b Base, folder string) func(member string) {
	return func(member string) {
		if err := journal.WriteFile(filepath.Join(folder, memberFile), []byte(member)); err != nil {
			b.Logger.Warn("the name in the group is not written down, a restart will take longer", "error", err)
		}
	}
}

// leaveForFormer leaves the group for a former worker. When that does not succeed, the group finds out by itself.
func leaveForFormer(ctx context.Context, b Base, folder string) {
	member, err := os.ReadFile(filepath.Join(folder, memberFile))
	if err != nil || len(member) == 0 {
		return
	}
	admin, err := kafka.NewAdmin(b.Kafka)
	if err == nil {
		defer admin.Close()
		err = admin.Leave(ctx, "runner", events.TopicWork, string(member))
	}
	if err != nil {
		b.Logger.WarnContext(ctx, "the former worker is still in the group, work may come some seconds later", "error", err)
	}
}
