package clickhouse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// engine is the one ClickHouse of this process, on one folder. Connections to it are cheap (0.1 ms) and independent;
// anchor keeps the engine alive between them.
type engine struct {
	lib     *library
	path    string
	version string
	zone    string

	// mu guards anchor and is held for reading while a connection is opened, so that none is opened after close.
	mu     sync.RWMutex
	anchor *conn
}

// claimed is the data folder of the engine that this process has open, or opens: libchdb keeps its state in globals, so
// there can be one.
var claimed struct {
	sync.Mutex
	dir string
}

// claimProcess takes the process's one engine for dir. Whoever wants a second is told to use a second database instead.
func claimProcess(dir string) error {
	claimed.Lock()
	defer claimed.Unlock()
	if claimed.dir != "" {
		return fmt.Errorf("the embedded clickhouse already runs in this process on %s, and a process can run only one: use a database of its own there instead of a second engine on %s", claimed.dir, dir)
	}
	claimed.dir = dir
	return nil
}

func releaseProcess() {
	claimed.Lock()
	defer claimed.Unlock()
	claimed.dir = ""
}

// errEngineClosed answers requests that arrive while the server stops.
var errEngineClosed = errors.New("the embedded clickhouse is stopping")

// openEngine starts the engine on dir, which the caller has locked, in the process that it has claimed.
func openEngine(lib *library, dir string) (*engine, error) {
	config, err := writeEngineConfig(dir)
	if err != nil {
		return nil, err
	}
	e := &engine{lib: lib, path: filepath.Join(dir, "engine")}
	anchor, err := openConn(lib, "--path="+e.path, "--config-file="+config)
	if err != nil {
		return nil, fmt.Errorf("start the engine on %s: %w", dir, err)
	}
	e.anchor = anchor
	if err := e.learn(); err != nil {
		anchor.close()
		return nil, fmt.Errorf("ask the engine for its version: %w", err)
	}
	return e, nil
}

func (e *engine) learn() (err error) {
	if e.version, err = e.anchor.value("SELECT version()"); err != nil {
		return err
	}
	e.zone, err = e.anchor.value("SELECT timezone()")
	return err
}

// connect opens a connection with the settings of a fresh session.
func (e *engine) connect() (*conn, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.anchor == nil {
		return nil, errEngineClosed
	}
	return openConn(e.lib, "--path="+e.path)
}

// close shuts the engine down. Every other connection has to be closed before: the engine ends with the last one.
func (e *engine) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.anchor == nil {
		return
	}
	e.anchor.close()
	e.anchor = nil
}

// A statement that has not ended is cancelled again, after a time that doubles from killFirst to killLast: the first
// attempt may come before the engine has registered the statement.
const (
	killFirst = 10 * time.Millisecond
	killLast  = 640 * time.Millisecond
)

// markSetting is the setting that tells the statements of one request from all others in system.processes. The engine
// chooses query ids itself, and a statement may set log_comment; this setting is inert here, because there are no
// replicas.
const markSetting = "cluster_for_parallel_replicas"

// guarded runs work, which uses a connection whose markSetting is mark, and cancels its statement when ctx ends. It
// returns when work has returned.
func (e *engine) guarded(ctx context.Context, mark string, work func() error) error {
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		for wait := killFirst; ; wait = min(2*wait, killLast) {
			e.kill(mark)
			select {
			case <-done:
				return
			case <-time.After(wait):
			}
		}
	})
	err := work()
	close(done)
	watcher.Wait()
	return err
}

// kill asks the engine to cancel the statements that carry mark. The C API cannot cancel a statement
// that has not answered yet, KILL QUERY on another connection can.
func (e *engine) kill(mark string) {
	c, err := e.connect()
	if err != nil {
		return // the engine is closed: nothing runs
	}
	defer c.close()
	// The answer does not matter: a statement that ended meanwhile is as good as a cancelled one.
	_ = c.exec("KILL QUERY WHERE Settings['" + markSetting + "'] = " + quoteString(mark) + " ASYNC")
}

// newMark makes a mark for guarded.
func newMark() string { return rand.Text() }

// quoteString makes a ClickHouse string literal.
func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// quoteIdentifier makes a quoted ClickHouse identifier.
func quoteIdentifier(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}

// engineConfig is read instead of any config.xml in the working directory or the home, where the engine would look
// otherwise. Half of the machine's memory is the engine's limit, because the rest of Verbatim lives in this process too.
const engineConfig = `<clickhouse>
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <users_config>%s</users_config>
    <access_control_improvements>
        <table_engines_require_grant>true</table_engines_require_grant>
    </access_control_improvements>
</clickhouse>
`

// engineUsers gives the one user what a database needs, and nothing that reaches outside of its folder: no files, no
// network, no dictionaries (an executable source runs a program), no SYSTEM SHUTDOWN. The engine would allow all of
// that by default, to anybody on this machine who can connect. Inserts are synchronous: an answer means stored. The parser
// cannot be cancelled, and with a depth of a million it works on 20,000 parentheses for minutes.
const engineUsers = `<clickhouse>
    <profiles>
        <default>
            <async_insert>0</async_insert>
            <implicit_select>0</implicit_select>
            <constraints><max_parser_depth><max>16000</max></max_parser_depth></constraints>
        </default>
    </profiles>
    <users>
        <default>
            <password></password>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <grants>
                <query>GRANT CHECK, SHOW, SELECT, INSERT, ALTER TABLE, ALTER VIEW, CREATE DATABASE, CREATE TABLE, CREATE VIEW,
                    CREATE ARBITRARY TEMPORARY TABLE, CREATE FUNCTION, DROP DATABASE, DROP TABLE, DROP VIEW, DROP FUNCTION,
                    UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, dictGet, SYSTEM MERGES, SYSTEM TTL MERGES,
                    SYSTEM DROP CACHE, SYSTEM FLUSH, SYSTEM CLEANUP ON *.*</query>
                <query>GRANT %s</query>
            </grants>
        </default>
    </users>
    <quotas><default></default></quotas>
</clickhouse>
`

// allowedEngines are the table and database engines that keep their data in the engine's own folder, or in memory.
var allowedEngines = []string{
	"MergeTree", "ReplacingMergeTree", "SummingMergeTree", "AggregatingMergeTree", "CollapsingMergeTree",
	"VersionedCollapsingMergeTree", "CoalescingMergeTree", "GraphiteMergeTree", "Log", "TinyLog", "StripeLog",
	"Memory", "Null", "Set", "Join", "Buffer", "Merge", "GenerateRandom", "View", "MaterializedView", "Atomic",
}

func writeEngineConfig(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the data folder: %w", err)
	}
	grants := make([]string, len(allowedEngines))
	for i, name := range allowedEngines {
		grants[i] = "TABLE ENGINE ON " + name
	}
	users, config := filepath.Join(abs, "users.xml"), filepath.Join(abs, "config.xml")
	err = errors.Join(
		os.WriteFile(users, fmt.Appendf(nil, engineUsers, strings.Join(grants, ", ")), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, engineConfig, escapeXML(users)), 0o600),
	)
	if err != nil {
		return "", fmt.Errorf("write the engine's configuration: %w", err)
	}
	return config, nil
}

func escapeXML(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
