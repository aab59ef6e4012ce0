package clickhouse

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"
)

// conn is one connection to the engine: a session with its own settings, current database and temporary tables. It is
// used by one goroutine at a time. Every call blocks an operating system thread until the engine answers.
type conn struct {
	lib    *library
	handle unsafe.Pointer // chdb_connection *
	client unsafe.Pointer // chdb_connection
}

// stats are what the engine counted for one statement.
type stats struct {
	readRows, readBytes, writtenRows, writtenBytes, resultRows uint64
}

func (s *stats) add(o stats) {
	s.readRows += o.readRows
	s.readBytes += o.readBytes
	s.writtenRows += o.writtenRows
	s.writtenBytes += o.writtenBytes
	s.resultRows += o.resultRows
}

func openConn(lib *library, args ...string) (*conn, error) {
	argv := make([]unsafe.Pointer, 0, len(args)+2)
	for _, arg := range append([]string{"clickhouse"}, args...) {
		if strings.ContainsRune(arg, 0) {
			return nil, errors.New("an argument of the engine holds a NUL byte")
		}
		cstring := append([]byte(arg), 0)
		argv = append(argv, unsafe.Pointer(unsafe.SliceData(cstring)))
	}
	count := int32(len(argv))
	argv = append(argv, nil)
	handle := lib.connect(count, unsafe.Pointer(unsafe.SliceData(argv)))
	runtime.KeepAlive(argv)
	if handle == nil {
		return nil, errors.New("the engine refused the connection")
	}
	return &conn{lib: lib, handle: handle, client: *(*unsafe.Pointer)(handle)}, nil
}

func (c *conn) close() {
	c.lib.closeConn(c.handle)
	c.handle, c.client = nil, nil
}

// result is an answer that lives in the engine's memory until free.
type result struct {
	lib *library
	ptr unsafe.Pointer
}

func (r result) err() error {
	if text := r.lib.resultError(r.ptr); text != "" {
		return newException(text)
	}
	return nil
}

// bytes is valid until free.
func (r result) bytes() []byte {
	n := r.lib.resultLength(r.ptr)
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(r.lib.resultBuffer(r.ptr)), n)
}

func (r result) stats() stats {
	return stats{
		readRows:     r.lib.resultStorageRows(r.ptr),
		readBytes:    r.lib.resultStorageBytes(r.ptr),
		writtenRows:  r.lib.resultRowsWritten(r.ptr),
		writtenBytes: r.lib.resultBytesWritten(r.ptr),
		resultRows:   r.lib.resultRowsRead(r.ptr),
	}
}

func (r result) free() { r.lib.resultDestroy(r.ptr) }

// query runs one statement and holds its whole answer in memory. The caller frees the result, also after an error.
func (c *conn) query(sql, format string, params map[string]string) (result, error) {
	r := result{c.lib, newParameters(params).call(c.lib.queryWithParams, c.client, sql, format)}
	return r, r.err()
}

// exec runs one statement whose answer is of no interest.
func (c *conn) exec(sql string) error {
	r, err := c.query(sql, "Null", nil)
	r.free()
	return err
}

// value runs a statement that answers with one line of tab-separated text.
func (c *conn) value(sql string) (string, error) {
	r, err := c.query(sql, "TabSeparatedRaw", nil)
	defer r.free()
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(r.bytes()), "\n"), nil
}

// stream runs a SELECT and hands its answer to each in pieces of about one block, as they are computed. The piece is
// valid during the call. An error of each ends the query and is returned.
func (c *conn) stream(sql, format string, params map[string]string, each func(piece []byte, s stats) error) error {
	r := result{c.lib, newParameters(params).call(c.lib.streamWithParams, c.client, sql, format)}
	defer r.free()
	if err := r.err(); err != nil {
		return err
	}
	for {
		more, err := c.streamStep(r, each)
		if err != nil {
			c.lib.streamCancel(c.client, r.ptr)
			return err
		}
		if !more {
			return nil
		}
	}
}

func (c *conn) streamStep(r result, each func(piece []byte, s stats) error) (more bool, err error) {
	piece := result{c.lib, c.lib.streamFetch(c.client, r.ptr)}
	defer piece.free()
	if err := piece.err(); err != nil {
		return false, err
	}
	data := piece.bytes()
	if len(data) == 0 {
		return false, nil
	}
	return true, each(data, piece.stats())
}

// insertStream is an INSERT whose data arrives in pieces, cut anywhere. Append blocks while the engine is behind.
// Exactly one of finish and cancel ends it.
type insertStream struct {
	lib *library
	ptr unsafe.Pointer
}

// insert begins an INSERT. sql is the statement up to, and without, its FORMAT or VALUES word.
func (c *conn) insert(sql, format string, params map[string]string) (*insertStream, error) {
	s := &insertStream{c.lib, newParameters(params).call(c.lib.insertWithParams, c.client, sql, format)}
	if text := c.lib.insertError(s.ptr); text != "" {
		err := newException(text)
		c.lib.insertDestroy(s.ptr)
		return nil, err
	}
	return s, nil
}

// errInsertStopped says that the engine takes no more data; finish tells why.
var errInsertStopped = errors.New("the engine ended the insert")

func (s *insertStream) append(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	state := s.lib.insertAppend(s.ptr, unsafe.Pointer(unsafe.SliceData(data)), uintptr(len(data)))
	runtime.KeepAlive(data)
	if state != 0 {
		return errInsertStopped
	}
	return nil
}

// finish commits what is not yet committed. A nil error is the engine's acknowledgement of all rows.
func (s *insertStream) finish() (stats, error) {
	defer s.lib.insertDestroy(s.ptr)
	r := result{s.lib, s.lib.insertDone(s.ptr)}
	defer r.free()
	if err := r.err(); err != nil {
		return stats{}, err
	}
	return r.stats(), nil
}

// cancel ends the insert without committing what the engine still holds. Blocks that were complete before stay, as on
// a server.
func (s *insertStream) cancel() {
	s.lib.insertCancel(s.ptr)
	s.lib.insertDestroy(s.ptr)
}

// The classes of chdb_query_class.
const (
	classReadOnly = 0
	classUnknown  = 4
)

// analysis mirrors chdb_query_analysis_v1.
type analysis struct {
	structSize, statementCount, flags, class uint32
}

// classify says how many statements sql holds and what the worst of them may change, without running any. Text that
// does not parse has class classUnknown and no statements.
func (c *conn) classify(sql string) (analysis, error) {
	a := analysis{structSize: uint32(unsafe.Sizeof(analysis{}))}
	sp, sl := text(sql)
	if state := c.lib.classify(c.client, sp, sl, nil, 0, unsafe.Pointer(&a)); state != 0 {
		return a, fmt.Errorf("classify the statement: state %d", state)
	}
	runtime.KeepAlive(sql)
	return a, nil
}
