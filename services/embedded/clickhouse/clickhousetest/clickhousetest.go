// Package clickhousetest gives tests a real ClickHouse: the embedded engine, once per test binary, and a database of
// its own for each test.
//
//	func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }
//
//	func TestRows(t *testing.T) {
//		options, err := clickhouse.ParseDSN(clickhousetest.Database(t))
//		…
//	}
//
// The engine starts with the first test that asks for it. A missing library fails the test with the command that
// fetches it; tests never skip for it.
package clickhousetest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"verbatim.dev/services/embedded/clickhouse"
)

var shared struct {
	managed bool // Main is running
	once    sync.Once
	server  *clickhouse.Server
	err     error
	dir     string
	count   atomic.Int64
}

// stopTimeout bounds the end of the engine after the tests.
const stopTimeout = 30 * time.Second

// Main runs the tests of a package, stops the engine if one was started, removes its data and looks for goroutines that
// are left. TestMain passes its result to os.Exit.
func Main(m *testing.M) int {
	shared.managed = true
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code == 0 {
		http.DefaultClient.CloseIdleConnections()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left after the tests:", err)
			code = 1
		}
	}
	return code
}

func stop() error {
	if shared.dir == "" {
		return nil
	}
	defer os.RemoveAll(shared.dir)
	if shared.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return shared.server.Stop(ctx)
}

// Start returns the engine of this test binary. Every test shares it; a test that needs a state of its own uses
// Database.
func Start(t testing.TB) *clickhouse.Server {
	t.Helper()
	if !shared.managed {
		t.Fatal("clickhousetest: TestMain has to run the tests with clickhousetest.Main")
	}
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "clickhousetest-"); shared.err != nil {
			return
		}
		shared.server, shared.err = clickhouse.Start(context.Background(), clickhouse.Config{Addr: "127.0.0.1:0", DataDir: shared.dir})
	})
	if shared.err != nil {
		t.Fatalf("start the embedded clickhouse: %v", shared.err)
	}
	return shared.server
}

// Database makes an empty database for this test and returns its DSN. The database is dropped when the test ends.
func Database(t testing.TB) string {
	t.Helper()
	server := Start(t)
	name := fmt.Sprintf("test_%d", shared.count.Add(1))
	exec(t, server, "CREATE DATABASE "+name)
	t.Cleanup(func() { exec(t, server, "DROP DATABASE "+name+" SYNC") })
	return "http://" + server.Addr() + "/" + name
}

// exec runs a statement without a ClickHouse client, so that a test's own client is the only one in its way.
func exec(t testing.TB, server *clickhouse.Server, sql string) {
	t.Helper()
	address := url.URL{Scheme: "http", Host: server.Addr(), Path: "/"}
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, address.String(), strings.NewReader(sql))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", sql, response.Status, body, err)
	}
}
