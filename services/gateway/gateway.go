package gateway

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/semaphore"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/gateway/barrier"
	"verbatim.dev/services/gateway/fleet"
	"verbatim.dev/services/gateway/tail"
)

// Rows reads rows. It is safe for concurrent use; *clickhouse.Store is one.
type Rows interface {
	// Row returns clickhouse.ErrNotFound when there is none.
	Row(ctx context.Context, id string) (execution.Row, error)
	List(ctx context.Context, f clickhouse.Filter) ([]execution.Row, error)
}

// Archive reads archived facts. It is safe for concurrent use; *clickhouse.Store is one.
type Archive interface {
	// Events yields an execution's facts above a Kafka offset, by rising offset, each once.
	Events(ctx context.Context, id string, afterOffset int64) iter.Seq2[clickhouse.ArchivedEvent, error]
	// Output yields the bytes [from, to) of a stream that are there, by rising offset, no byte twice;
	// attempt 0 is the latest and to 0 the end.
	Output(ctx context.Context, id string, attempt uint32, stream string, from, to uint64) iter.Seq2[clickhouse.Chunk, error]
	// Stories yields what there is of executions but their output; of which there is nothing is left out.
	Stories(ctx context.Context, ids []string) iter.Seq2[*clickhouse.Story, error]
}

// Publisher writes to the log; it returns when all in-sync replicas have the messages, or with an
// error when the context ended first. It is safe for concurrent use; *kafka.Publisher is one.
type Publisher interface {
	PublishContext(ctx context.Context, topic string, messages ...*message.Message) error
}

// Check is one more part that must work for the gateway to be ready.
type Check struct {
	Name string
	// Check returns within its context why the part does not work.
	Check func(context.Context) error
}

// Deps is what the gateway stands on. It closes nothing of it.
type Deps struct {
	Rows      Rows
	Archive   Archive
	Publisher Publisher
	Offsets   barrier.Offsets
	Log       tail.Log
	// Artifacts are the files that output is recorded in. nil: the archive alone is read.
	Artifacts Artifacts
	// Fleet knows the runners. nil: none are known.
	Fleet *fleet.Fleet
	// Checks are added to the gateway's own (kafka and clickhouse_http).
	Checks []Check
}

// Groups of the services that the gateway waits for.
const (
	projectorGroup = "projector"
	recorderGroup  = "recorder"
)

// Gateway is a service: Start, Stop, Failed.
type Gateway struct {
	c          Config
	d          Deps
	metrics    *metrics
	projector  *barrier.Barrier
	recorder   *barrier.Barrier
	archive    boundedArchive
	hub        *tail.Hub
	tails      *semaphore.Weighted
	downloads  *semaphore.Weighted
	accepted   *accepted
	clickhouse *queryClient
	partitions int
	// stdinPartitions is how many the topic of stdin parts has.
	stdinPartitions int
	routes          *http.ServeMux
	server          *http.Server
	serving         sync.WaitGroup
	failed          chan error

	mu       sync.Mutex
	listener net.Listener
}

// New returns a gateway that listens nowhere yet.
func New(c Config, d Deps) (*Gateway, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if d.Rows == nil || d.Archive == nil || d.Publisher == nil || d.Offsets == nil || d.Log == nil {
		return nil, errors.New("gateway: a dependency is missing")
	}
	if d.Fleet == nil {
		d.Fleet = fleet.New()
	}
	m, err := newMetrics(c.Registry)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{c: c.withDefaults(), d: d, metrics: m, accepted: newAccepted(), failed: make(chan error, 1)}
	for _, t := range events.Topics() {
		if t.Name == events.TopicExecutions {
			g.partitions = t.Partitions
		}
		if t.Name == events.TopicStdin {
			g.stdinPartitions = t.Partitions
		}
	}
	g.projector = barrier.New(d.Offsets, projectorGroup, events.TopicExecutions)
	g.recorder = barrier.New(d.Offsets, recorderGroup, events.TopicExecutions)
	g.archive = boundedArchive{d.Archive, semaphore.NewWeighted(archiveReads)}
	g.hub = tail.NewHub(tail.Config{Log: d.Log, Archive: tailArchive{g.archive, g.recorder}, Partition: g.partition, Logger: g.c.Logger})
	g.downloads = semaphore.NewWeighted(int64(g.c.MaxDownloads))
	g.tails = semaphore.NewWeighted(int64(g.c.MaxTails))
	g.clickhouse = newQueryClient(g.c.ClickHouseURL)
	g.routes = http.NewServeMux()
	described := g.api()
	g.register(described)
	g.registerUpload(described)
	g.registerPlain()
	g.registerPages()
	g.server = &http.Server{
		Handler:           g.handler(g.routes),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(g.c.Logger.Handler(), slog.LevelDebug),
	}
	return g, nil
}

// partition is where an execution's facts are.
func (g *Gateway) partition(id string) int { return kafka.PartitionFor([]byte(id), g.partitions) }

// Start listens; its context bounds only the starting.
func (g *Gateway) Start(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", g.c.Addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	g.mu.Lock()
	g.listener = l
	g.mu.Unlock()
	g.serving.Go(func() {
		if err := g.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			g.failed <- fmt.Errorf("serve: %w", err)
		}
	})
	return nil
}

// Failed yields why the gateway ended by itself, if it does.
func (g *Gateway) Failed() <-chan error { return g.failed }

// Addr is the host:port in use; empty before Start.
func (g *Gateway) Addr() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener == nil {
		return ""
	}
	return g.listener.Addr().String()
}

// Stop takes no new requests, tells the tails that it stops, and waits for the other requests; when the
// context ends first they are cut off.
func (g *Gateway) Stop(ctx context.Context) error {
	g.hub.Stop()
	err := g.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("finish requests: %w", err), g.server.Close())
	}
	g.serving.Wait()
	g.projector.Stop()
	g.recorder.Stop()
	g.clickhouse.close()
	return err
}

// api makes huma's part of the routes.
func (g *Gateway) api() huma.API {
	config := huma.DefaultConfig("Verbatim", "1")
	config.Info.Description = "Run processes and read every byte they wrote."
	config.DocsPath = "" // It would load scripts from elsewhere.
	config.CreateHooks = nil
	config.RejectUnknownQueryParameters = true
	config.Transformers = append(config.Transformers, withoutValues)
	return humago.New(g.routes, config)
}
