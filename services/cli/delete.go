package cli

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
)

type deleteCommand struct {
	brokerFlags
	databaseFlags
	IDs    []string      `arg:"" name:"id" help:"Executions' ids."`
	Reason string        `placeholder:"WHY" help:"Why; it stays in the row."`
	Force  bool          `help:"Also when it has not ended. What comes later is removed later."`
	Wait   time.Duration `default:"1m" help:"How long to wait until everything is removed. Default: 1m."`
	DryRun bool          `help:"Only say what would be removed."`
	JSON   bool          `name:"json" help:"Print one JSON object an execution."`
}

// Help is printed by kong below the flags.
func (deleteCommand) Help() string {
	return `Makes an execution forgotten: its output, its command, its labels, everything. What is left is a row that says that it was deleted, by
whom, when and why. That is a fact like others, so it stays true over restarts, replays and late facts.

Gone are the archived events, the recorded files, and the rows, also in the tables of replays. Kafka cannot remove single records: those of
the execution stay in verbatim.requests, verbatim.work, verbatim.executions and verbatim.stdin until their retention is over.
Backups and files of "verbatim export" are yours to look after.`
}

// Validate is called by kong.
func (c *deleteCommand) Validate() error {
	var errs []error
	for _, id := range c.IDs {
		_, err := events.ParseExecutionID(id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// deletedJSON is what is said of one execution.
type deletedJSON struct {
	ID     string `json:"execution_id"`
	Status string `json:"status"`
	Rows   uint64 `json:"rows"`
	Events uint64 `json:"events"`
	DryRun bool   `json:"dry_run"`
}

var errNotYet = errors.New("not everything is removed yet: recorder and projector do it when they run; the same command looks again")

// Run is called by kong.
func (c *deleteCommand) Run(ctx context.Context, s *session) (err error) {
	store, err := c.databaseFlags.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	// Every id is looked at before anything goes: a wrong one removes nothing.
	var found []deletedJSON
	for _, id := range c.IDs {
		j, err := c.look(ctx, store, id)
		if err != nil {
			return err
		}
		found = append(found, j)
	}
	if !c.DryRun {
		config, err := c.brokerFlags.open(s)
		if err != nil {
			return err
		}
		if err := c.publish(ctx, config, found); err != nil {
			return err
		}
		if err := c.await(ctx, s, store); err != nil {
			return err
		}
	}
	for _, j := range found {
		if c.JSON {
			if err := writeJSON(s.stdout, j); err != nil {
				return err
			}
			continue
		}
		verb := "deleted"
		if c.DryRun {
			verb = "would be deleted"
		}
		fmt.Fprintf(s.stdout, "%s %s: %d rows, %d archived events\n", j.ID, verb, j.Rows, j.Events)
	}
	return nil
}

var ended = []string{
	execution.StatusSucceeded, execution.StatusFailed, execution.StatusTimeout, execution.StatusCancelled, execution.StatusLost, execution.StatusDeleted,
}

func (c *deleteCommand) look(ctx context.Context, store *clickhouse.Store, id string) (deletedJSON, error) {
	j := deletedJSON{ID: id, DryRun: c.DryRun}
	var err error
	if j.Rows, j.Events, err = store.Remains(ctx, id); err != nil {
		return j, err
	}
	row, err := store.Row(ctx, id)
	switch {
	case errors.Is(err, clickhouse.ErrNotFound) && j.Rows+j.Events == 0:
		return j, fmt.Errorf("no execution %s is known", id)
	case errors.Is(err, clickhouse.ErrNotFound):
		j.Status = execution.StatusRequested
	case err != nil:
		return j, err
	default:
		j.Status = row.Status
	}
	if !c.Force && (!slices.Contains(ended, j.Status) || !row.Sealed && j.Status != execution.StatusLost) {
		return j, fmt.Errorf("execution %s is %s, and facts of it are still to come: wait for its end (verbatim cancel %s), or use --force", id, j.Status, id)
	}
	return j, nil
}

// publish says it of those of which it was not said, or of which something came since.
func (c *deleteCommand) publish(ctx context.Context, config kafka.Config, found []deletedJSON) error {
	d := &executionv1.ExecutionDeleted{Reason: c.Reason}
	if u, err := user.Current(); err == nil {
		d.RequestedBy = u.Username
	}
	return withPublisher(config, func(p *kafka.Publisher) error {
		for _, j := range found {
			if j.Status == execution.StatusDeleted && j.Rows+j.Events == 0 {
				continue
			}
			call, err := events.NewExecutionID()
			if err != nil {
				return err
			}
			e, err := events.Producer{Name: "delete." + call, Source: "/verbatim/delete"}.Event(j.ID, 0, 1, time.Now(), d)
			if err != nil {
				return err
			}
			m, err := codec.ToMessage(e)
			if err != nil {
				return err
			}
			if err := p.PublishContext(ctx, events.TopicExecutions, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// await waits until nothing of the executions is stored any more.
func (c *deleteCommand) await(ctx context.Context, s *session, store *clickhouse.Store) error {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	bar := newProgress(s.stderr, "deleting", "executions")
	defer bar.done()
	for i, id := range c.IDs {
		for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			bar.set(uint64(i), uint64(len(c.IDs)))
			rows, archived, err := store.Remains(ctx, id)
			if err == nil && rows+archived == 0 {
				row, err := store.Row(ctx, id)
				if err == nil && row.Status == execution.StatusDeleted {
					break
				}
			}
			select {
			case <-ctx.Done():
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					return err
				}
				return fmt.Errorf("execution %s: %w", id, errNotYet)
			case <-time.After(pause):
			}
		}
	}
	return nil
}
