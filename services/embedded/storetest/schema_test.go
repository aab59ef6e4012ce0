package storetest

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/projections/execution"
	"verbatim.dev/services/embedded/clickhouse/clickhousetest"
)

func TestMigrateTwiceKeepsRows(t *testing.T) {
	t.Parallel()
	s := open(t)
	f := factsOf(t, idAt(testTime, 1))
	f.say(1, &executionv1.ProcessStarted{Pid: 1})
	must(t, s.InsertRows(t.Context(), []*execution.State{f.state()}))
	must(t, s.Migrate(t.Context()))
	must(t, s.CheckSchema(t.Context()))
	got, err := s.Row(t.Context(), f.id)
	must(t, err)
	sameRow(t, f.state().Row(), got)
}

// Several services start at once on an empty database.
func TestMigrateConcurrently(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	var stores []*clickhouse.Store
	for range 5 {
		stores = append(stores, connect(t, dsn))
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			if err := s.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		must(t, s.CheckSchema(t.Context()))
	}
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	s := connect(t, dsn)
	if err := s.CheckSchema(t.Context()); !errors.Is(err, clickhouse.ErrSchema) {
		t.Fatalf("an empty database was taken: %v", err)
	}
	must(t, s.Migrate(t.Context()))
	must(t, s.CheckSchema(t.Context()))

	exec(t, dsn, "INSERT INTO schema_versions (version_id, is_applied) VALUES (99, 1)")
	for name, err := range map[string]error{"check": s.CheckSchema(t.Context()), "migrate": s.Migrate(t.Context())} {
		if !errors.Is(err, clickhouse.ErrSchema) || !strings.Contains(err.Error(), "newer binary") {
			t.Errorf("%s of a newer schema: %v", name, err)
		}
	}
}

// Every column that a person may wonder about has a comment, and no column is Nullable in a key.
func TestColumnsMatchTheRow(t *testing.T) {
	t.Parallel()
	dsn := clickhousetest.Database(t)
	must(t, connect(t, dsn).Migrate(t.Context()))
	db := database(t, dsn)
	rows, err := db.QueryContext(t.Context(), "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'executions' ORDER BY position")
	must(t, err)
	defer rows.Close()
	columns := map[string]bool{}
	for rows.Next() {
		var name string
		must(t, rows.Scan(&name))
		columns[name] = true
	}
	must(t, rows.Err())
	for field := range jsonFields(t, execution.New(idAt(testTime, 1)).Row()) {
		if field != "termination" && !columns[field] {
			t.Errorf("the row has %s, the table has not", field)
		}
	}
}

// With the server away every call ends with an error, in time, and names no password.
func TestServerAway(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 20*time.Second)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close()) // nobody listens there now
	_, err = clickhouse.Open(ctx, "http://somebody:topsecret@"+address+"/default")
	if err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Fatalf("open without a server: %v", err)
	}
	for _, dsn := range []string{"http://somebody:topsecret@bad host/%zz", "http://somebody:topsecret@h:port:1/", "topsecret"} {
		if _, err := clickhouse.Open(ctx, dsn); err == nil || strings.Contains(err.Error(), "topsecret") && dsn != "topsecret" {
			t.Errorf("open of a malformed address: %v", err)
		}
	}
}

// The server goes away and comes back: calls in between end with an error, calls after that work, on the same store.
func TestServerComesBack(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, time.Minute)
	dsn := clickhousetest.Database(t)
	target, err := url.Parse(dsn)
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: target.Host})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	proxy.Transport = transport
	listen := func(address string) *http.Server {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		must(t, err)
		server := &http.Server{Addr: listener.Addr().String(), Handler: proxy, ReadHeaderTimeout: time.Minute}
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { _ = server.Close() })
		return server
	}
	server := listen("127.0.0.1:0")
	target.Host = server.Addr
	s := connect(t, target.String())
	must(t, s.Migrate(ctx))
	f := factsOf(t, idAt(testTime, 1))
	f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("x"))
	must(t, s.InsertEvents(ctx, f.all))

	must(t, server.Close())
	_, rowErr := s.Row(ctx, f.id)
	for name, err := range map[string]error{"events": s.InsertEvents(ctx, f.all), "rows": s.InsertRows(ctx, []*execution.State{f.state()}), "row": rowErr, "ping": s.Ping(ctx)} {
		if err == nil || errors.Is(err, clickhouse.ErrNotFound) || ctx.Err() != nil {
			t.Errorf("%s with the server away: %v", name, err)
		}
	}

	listen(server.Addr)
	must(t, s.InsertEvents(ctx, f.all))
	must(t, s.InsertRows(ctx, []*execution.State{f.state()}))
	got, err := s.Row(ctx, f.id)
	must(t, err)
	sameRow(t, f.state().Row(), got)
}

// A cancelled call ends as such.
func TestCancelled(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := factsOf(t, idAt(testTime, 1))
	f.chunk(1, executionv1.Stream_STREAM_STDOUT, 0, []byte("x"))
	_, listErr := s.List(ctx, clickhouse.Filter{})
	_, rowErr := s.Row(ctx, f.id)
	for name, err := range map[string]error{
		"events": s.InsertEvents(ctx, f.all), "rows": s.InsertRows(ctx, []*execution.State{f.state()}), "list": listErr, "row": rowErr,
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	for _, err := range s.Events(ctx, f.id, -1) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("events: %v", err)
		}
	}
}

func database(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	options, err := chgo.ParseDSN(dsn)
	must(t, err)
	db := chgo.OpenDB(options)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func exec(t *testing.T, dsn, statement string) {
	t.Helper()
	_, err := database(t, dsn).ExecContext(t.Context(), statement)
	must(t, err)
}

// The engine has no Keeper, so it cannot run the definitions for a cluster. It can say that they are well-formed.
func TestDefinitionsForAClusterParse(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../projections/clickhouse/testdata/replicated.sql")
	must(t, err)
	db := database(t, clickhousetest.Database(t))
	statements := 0
	for _, statement := range strings.Split(regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(string(text), ""), ";\n") {
		if statement = strings.TrimSpace(statement); statement == "" {
			continue
		}
		statements++
		var first string
		if err := db.QueryRowContext(t.Context(), "EXPLAIN AST "+statement).Scan(&first); err != nil {
			t.Errorf("%v:\n%s", err, statement)
		}
	}
	if statements < 20 {
		t.Errorf("only %d statements were found", statements)
	}
}
