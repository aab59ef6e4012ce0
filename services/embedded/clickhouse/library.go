package clickhouse

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// library is libchdb's C API, bound to Go functions. The names are those of chdb.h without the prefix. Pointers to
// connections, results and streams are C memory that Go only hands back.
type library struct {
	version                  func() string
	setSignalHandlersEnabled func(enabled int32)

	connect   func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	closeConn func(conn unsafe.Pointer)

	queryWithParams  func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer
	streamWithParams func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer
	streamFetch      func(conn, result unsafe.Pointer) unsafe.Pointer
	streamCancel     func(conn, result unsafe.Pointer)

	insertWithParams func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer
	insertAppend     func(stream, data unsafe.Pointer, length uintptr) int32
	insertDone       func(stream unsafe.Pointer) unsafe.Pointer
	insertCancel     func(stream unsafe.Pointer)
	insertError      func(stream unsafe.Pointer) string
	insertDestroy    func(stream unsafe.Pointer)

	classify func(conn, sql unsafe.Pointer, sqlLen uintptr, database unsafe.Pointer, databaseLen uintptr, analysis unsafe.Pointer) int32

	resultBuffer       func(result unsafe.Pointer) unsafe.Pointer
	resultLength       func(result unsafe.Pointer) uintptr
	resultError        func(result unsafe.Pointer) string
	resultRowsRead     func(result unsafe.Pointer) uint64
	resultStorageRows  func(result unsafe.Pointer) uint64
	resultStorageBytes func(result unsafe.Pointer) uint64
	resultRowsWritten  func(result unsafe.Pointer) uint64
	resultBytesWritten func(result unsafe.Pointer) uint64
	resultDestroy      func(result unsafe.Pointer)
}

// A shared library is loaded once and never unloaded: its threads and thread-local destructors outlive dlclose.
var loaded struct {
	sync.Mutex
	path string
	lib  *library
}

// loadLibrary loads libchdb from path, or returns what an earlier call loaded from there.
func loadLibrary(path string) (*library, error) {
	loaded.Lock()
	defer loaded.Unlock()
	if loaded.lib != nil {
		if loaded.path != path {
			return nil, fmt.Errorf("libchdb is already loaded from %s, a process cannot load a second one from %s", loaded.path, path)
		}
		return loaded.lib, nil
	}
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load libchdb: %w", err)
	}
	lib := &library{}
	if err := lib.bind(handle); err != nil {
		return nil, fmt.Errorf("libchdb at %s is not version %s: %w", path, libraryVersion, err)
	}
	// The Go runtime owns the handlers of SIGSEGV and its like; it turns them into panics.
	lib.setSignalHandlersEnabled(0)
	loaded.path, loaded.lib = path, lib
	return lib, nil
}

func (l *library) bind(handle uintptr) error {
	var errs []error
	bind := func(name string, fn any) {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			errs = append(errs, err)
			return
		}
		purego.RegisterFunc(fn, symbol)
	}
	bind("chdb_version", &l.version)
	bind("chdb_set_signal_handlers_enabled", &l.setSignalHandlersEnabled)
	bind("chdb_connect", &l.connect)
	bind("chdb_close_conn", &l.closeConn)
	bind("chdb_query_with_params_n", &l.queryWithParams)
	bind("chdb_stream_query_with_params_n", &l.streamWithParams)
	bind("chdb_stream_fetch_result", &l.streamFetch)
	bind("chdb_stream_cancel_query", &l.streamCancel)
	bind("chdb_stream_insert_with_params_n", &l.insertWithParams)
	bind("chdb_stream_append", &l.insertAppend)
	bind("chdb_stream_done", &l.insertDone)
	bind("chdb_stream_cancel_insert", &l.insertCancel)
	bind("chdb_stream_insert_error", &l.insertError)
	bind("chdb_destroy_insert_stream", &l.insertDestroy)
	bind("chdb_classify_query_n", &l.classify)
	bind("chdb_result_buffer", &l.resultBuffer)
	bind("chdb_result_length", &l.resultLength)
	bind("chdb_result_error", &l.resultError)
	bind("chdb_result_rows_read", &l.resultRowsRead)
	bind("chdb_result_storage_rows_read", &l.resultStorageRows)
	bind("chdb_result_storage_bytes_read", &l.resultStorageBytes)
	bind("chdb_result_rows_written", &l.resultRowsWritten)
	bind("chdb_result_bytes_written", &l.resultBytesWritten)
	bind("chdb_destroy_query_result", &l.resultDestroy)
	return errors.Join(errs...)
}

// text is a string in the form of the C API: a pointer and a length. It may hold NUL bytes.
func text(s string) (unsafe.Pointer, uintptr) {
	if s == "" {
		s = "\x00" // never a nil pointer; the length stays 0
		return unsafe.Pointer(unsafe.StringData(s)), 0
	}
	return unsafe.Pointer(unsafe.StringData(s)), uintptr(len(s))
}

// parameters are query parameters as four parallel C arrays.
type parameters struct {
	names, values       []unsafe.Pointer
	nameLens, valueLens []uintptr
}

func newParameters(values map[string]string) *parameters {
	p := &parameters{}
	for name, value := range values {
		np, nl := text(name)
		vp, vl := text(value)
		p.names, p.nameLens = append(p.names, np), append(p.nameLens, nl)
		p.values, p.valueLens = append(p.values, vp), append(p.valueLens, vl)
	}
	return p
}

// call runs one of the three entry points that take a statement, a format and parameters.
func (p *parameters) call(fn func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer, conn unsafe.Pointer, sql, format string) unsafe.Pointer {
	sp, sl := text(sql)
	fp, fl := text(format)
	out := fn(conn, sp, sl, fp, fl,
		unsafe.Pointer(unsafe.SliceData(p.names)), unsafe.Pointer(unsafe.SliceData(p.nameLens)),
		unsafe.Pointer(unsafe.SliceData(p.values)), unsafe.Pointer(unsafe.SliceData(p.valueLens)),
		uintptr(len(p.names)))
	runtime.KeepAlive(p)
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	return out
}
