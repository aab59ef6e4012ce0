package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxRunning is the number of statements that run at once; more wait. Each holds an operating system thread, and the
	// engine spreads each over its own threads besides. ClickHouse's default for max_concurrent_queries is 100.
	maxRunning = 100
	// maxURI is ClickHouse's default of http_max_uri_size, in bytes. Go counts it with the headers.
	maxURI = 1 << 20
	// headerTimeout bounds a client that connects and says nothing; ClickHouse's http_headers_read_timeout is 30 s.
	headerTimeout = 30 * time.Second
	// killGrace is how long a cancelled statement may take to end.
	killGrace = 30 * time.Second
	// idleTimeout bounds a kept-alive connection without requests.
	idleTimeout = 5 * time.Minute
)

// Server is a running embedded ClickHouse.
type Server struct {
	log    *slog.Logger
	engine *engine
	lock   *folderLock
	spool  string // folder of answers that wait_end_of_query holds back

	listener net.Listener
	http     *http.Server
	served   chan struct{} // closed when the accept loop has ended

	// requests is cancelled to end every statement at once.
	requests context.Context
	cancel   context.CancelFunc
	running  chan struct{} // one element for each statement that runs
	handlers handlerGroup
	sessions *sessions

	stopOnce sync.Once
	stopErr  error
	stopped  chan struct{}
}

// Start loads the engine, opens or creates the database in c.DataDir and serves it. It returns when queries are
// answered. ctx bounds the start only. Errors: a configuration that Validate refuses, a missing library (the text names
// the command that fetches it), a data folder that another process holds (the text names it), a second server in this
// process, an address in use.
func Start(ctx context.Context, c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, fmt.Errorf("find the data folder: %w", err)
	}
	path, err := c.library()
	if err != nil {
		return nil, err
	}
	if err := claimProcess(dir); err != nil {
		return nil, err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		releaseProcess()
		return nil, err
	}
	s, err := startLocked(ctx, c, dir, path)
	if err != nil {
		releaseProcess()
		return nil, errors.Join(err, lock.release())
	}
	s.lock = lock
	s.log.InfoContext(ctx, "embedded clickhouse serves", "addr", s.Addr(), "data_dir", dir, "version", s.engine.version, "libchdb", s.engine.lib.version())
	return s, nil
}

func startLocked(ctx context.Context, c Config, dir, library string) (*Server, error) {
	spool, err := emptyFolder(filepath.Join(dir, "spool"))
	if err != nil {
		return nil, err
	}
	lib, err := loadLibrary(library)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen on the clickhouse address: %w", err)
	}
	engine, err := openEngine(lib, dir)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	s := &Server{
		log:      c.logger(),
		engine:   engine,
		spool:    spool,
		listener: listener,
		served:   make(chan struct{}),
		running:  make(chan struct{}, maxRunning),
		stopped:  make(chan struct{}),
	}
	s.sessions = newSessions(engine)
	s.requests, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxURI,
		BaseContext:       func(net.Listener) context.Context { return s.requests },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.ErrorContext(s.requests, "embedded clickhouse accepts no more connections", "error", err)
		}
	}()
	return s, nil
}

// emptyFolder makes dir and removes what an earlier process left in it.
func emptyFolder(dir string) (string, error) {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", fmt.Errorf("prepare the spool of the embedded clickhouse: %w", err)
	}
	return dir, nil
}

// Addr is the host:port in use.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// DSN is the address of the database `default` in the form that clickhouse-go's ParseDSN reads.
func (s *Server) DSN() string { return "http://" + s.Addr() + "/default" }

// Stop accepts no more requests, lets running statements finish until ctx ends and cancels the rest. Then it closes the
// engine, so that this process or another can open the data folder again. It may be called more than once and from
// several goroutines. An error says that statements had to be cancelled; the engine is closed all the same.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() {
		defer close(s.stopped)
		s.stopErr = s.stop(ctx)
	})
	<-s.stopped
	return s.stopErr
}

func (s *Server) stop(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	s.cancel() // from here on running statements are killed; none is left if Shutdown had the time
	if err != nil {
		err = fmt.Errorf("stop the embedded clickhouse: running statements were cancelled: %w", errors.Join(err, s.http.Close()))
	}
	<-s.served
	if !s.handlers.wait(killGrace) {
		// Closing a connection under a running statement aborts the process, so the engine stays open.
		return errors.Join(err, errors.New("stop the embedded clickhouse: a statement does not end, so the engine stays open until the process ends"))
	}
	s.sessions.close()
	s.engine.close()
	releaseProcess()
	if lockErr := s.lock.release(); lockErr != nil {
		err = errors.Join(err, fmt.Errorf("unlock the data folder: %w", lockErr))
	}
	s.log.InfoContext(ctx, "embedded clickhouse stopped", "addr", s.Addr())
	return err
}

// handlerGroup counts the requests at work. After wait has begun it admits no more.
type handlerGroup struct {
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

func (g *handlerGroup) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Add(1)
	return true
}

func (g *handlerGroup) leave() { g.work.Done() }

// wait reports whether all requests have ended within limit.
func (g *handlerGroup) wait(limit time.Duration) bool {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.work.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}
