package recorder

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"verbatim.dev/events"
	"verbatim.dev/projections/clickhouse"
)

// archive fails so many times to erase, and keeps what it was asked for.
type archive struct {
	fail  int
	late  []string
	asked [][]string
}

func (a *archive) InsertEvents(context.Context, []clickhouse.ArchivedEvent) error { return nil }

func (a *archive) Deleted(context.Context) ([]string, error) { return a.late, nil }

func (a *archive) EraseEvents(_ context.Context, ids []string) error {
	a.asked = append(a.asked, slices.Clone(ids))
	if len(a.asked) <= a.fail {
		return errors.New("the database is away")
	}
	return nil
}

// What is erased does not grow with every try that fails.
func TestEraseIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &archive{fail: 20, late: []string{"late"}}
		r, err := New(a, nil, 1, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Stop()
		deleted := clickhouse.ArchivedEvent{Event: events.Event{Type: events.TypeExecutionDeleted, Subject: "now"}}
		if err := r.erase(t.Context(), []clickhouse.ArchivedEvent{deleted}); err != nil {
			t.Fatal(err)
		}
		if len(a.asked) != a.fail+1 {
			t.Errorf("%d tries", len(a.asked))
		}
		for i, ids := range a.asked {
			if want := []string{"now", "late"}; !slices.Equal(ids, want) {
				t.Fatalf("try %d erases %q, want %q", i+1, ids, want)
			}
		}
	})
}
