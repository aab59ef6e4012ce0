// Package clickhouse runs a ClickHouse inside this process and serves it on loopback, so that clickhouse-go, curl and
// Grafana talk to it as to a server. It is what `verbatim up` and the tests use in place of a cluster: the same SQL, the
// same client and the same code run on both.
//
// # The engine
//
// The engine is chDB's libchdb, a ClickHouse built as a shared library. It is loaded with purego: no cgo is needed to
// build. Its state is global, so a process has one engine at a time, on one folder; tests share it and use a database
// each (package clickhousetest). scripts/fetch-libchdb fetches the library; Config says where it is looked for. The
// version is 26.7.3-stable.1, which the npm package chdb 3.4.0 names for linux and darwin, x64 and arm64. It leaves the
// signal handlers of its process alone, so a nil dereference in Go stays a panic; it takes an INSERT in pieces; and it
// can tell how many statements a text holds. 26.5.3, npm's `latest`, does none of that.
//
// A folder belongs to one process: Start takes a lock (flock) in it and the error of a second process names the first.
// A killed process leaves nothing to repair. Inserts are synchronous (async_insert is off, whatever a request says), so
// an answer of 200 means stored: the rows are in a part on disk and survive SIGKILL. As on a server, the engine does
// not fsync by default; against a loss of power, set fsync_after_insert on the table.
//
//	DataDir/lock          flock, and who holds it
//	DataDir/config.xml    written at every start, so that no config.xml in a working directory or home is read
//	DataDir/users.xml     the one user and its grants
//	DataDir/engine/       the engine's own folder
//	DataDir/spool/        pipes and files of answers on their way to a client; emptied at every start
//
// # Concurrency
//
// A connection to the engine is a session, runs one statement at a time and costs 0.1 ms; connections run beside each
// other. So each request gets a new one: nothing of it (settings, USE, temporary tables) can leak into the next, and a
// long SELECT holds up no INSERT. On 2 cores, 64 requests of sleep(0.1) at once took 2.5 s for ten rounds where one
// after the other takes 64 s, and a processor-bound query gained a factor of 2.5 to 2.8 from a second and a fourth
// client. Up to 100 statements run at once, each on an operating system thread that waits in C++; more wait for their
// turn. The engine checks the stack of such a thread itself (TOO_DEEP_RECURSION at half of its 8 MiB).
//
// The C API has no way to cancel a statement before its first answer. A statement whose request ended is therefore
// killed with KILL QUERY on another connection. It is found by a mark in a setting (markSetting) that the statement
// cannot override by accident, because the engine chooses query ids itself: query_id and X-ClickHouse-Query-Id are
// echoed, but queryID() and system.processes show others.
//
// # Requests
//
//	request ─► who asks? ─► first 1 MiB of query + body ─► what is it? ─┬─ INSERT with data ─► insert stream, 1 MiB pieces
//	           (foreign,     (request.statement)        (statement.go)  ├─ SELECT, chain format ─► result stream
//	           authenticate)                                            ├─ SELECT, other format ─► named pipe in spool/
//	                                                                    └─ anything else ─► answer in memory
//
// An INSERT is fed to the engine as it arrives; memory is bounded by the engine's own block, which for row formats is a
// million rows, as on a server. A body that breaks off is cancelled, not finished, so half a request is never taken for
// a whole one. A SELECT in a format that can be cut anywhere (chainFormats: Native, TSV, CSV, JSONEachRow, RowBinary …)
// is streamed; others (JSON, Parquet …) start anew with each piece of the engine's stream, so their answer comes through
// a pipe (pipe.go), which needs neither memory nor disk for it. What the engine itself holds are blocks of 65,000 rows:
// with rows of 1 kB the whole process took 0.7 GB for 3 GB of Native, and 1.5 GB for 2 GB of JSON. An error before the first byte of an
// answer has the status and the text of a server; one after it is written into the body in the server's framing and
// the connection is broken. Answers that other statements hold in memory (SHOW, DESCRIBE, EXPLAIN) are small.
//
// Nothing may write to a pipe or socket without a reader on a thread of the engine's: the Go runtime lets SIGPIPE on a
// thread that is not its own end the process.
//
// clickhouse-go asks for the server's version first, in a way that the engine cannot answer; hello.go does. Everything
// else is the engine's own: this package parses no SQL beyond its tokens (statement.go) and rewrites none, save that a
// SELECT may get an INTO OUTFILE of ours.
//
// # What SQL can reach
//
// There are no passwords, as on a fresh server, so the interface listens on loopback only, and refuses web pages (an
// Origin or a Host that is not loopback). By default the engine would let anybody who connects read and write all
// files of our user and run programs (a dictionary with an executable source). The user's grants, the list of table
// engines and the checks in statement.checkFiles close that: SQL sees the database and nothing else of the machine.
//
// # What is not there
//
// INSERT … SELECT … FROM input(), replicas, clusters, users and roles, query_log and the other log tables (there is
// nothing that could grow), the native protocol on port 9000, and queryID() as told above. A setting that asks for
// asynchronous inserts is accepted and has no effect. readonly, max_execution_time and the other limits work per
// request, as on a server. HTTP sessions (session_id) work.
package clickhouse
