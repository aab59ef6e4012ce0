package clickhouse

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Codes that this package raises or tests for itself. The numbers are those of ClickHouse's src/Common/ErrorCodes.cpp.
const (
	codeCannotReadAllData     = 33
	codeBadArguments          = 36
	codeNotImplemented        = 48
	codeSyntaxError           = 62
	codeUnknownFormat         = 73
	codeUnknownTypeOfQuery    = 78
	codeUnknownCompression    = 89
	codeUnknownSetting        = 115
	codeReadonly              = 164
	codeNetworkError          = 210
	codeCannotDecompress      = 271
	codeIntoOutfileNotAllowed = 358
	codeSessionNotFound       = 372
	codeSessionIsLocked       = 373
	codeInvalidSessionTimeout = 374
	codeQueryWasCancelled     = 394
	codeAccessDenied          = 497
	codeAuthenticationFailed  = 516
	codePocoException         = 1000
	codeStdException          = 1001
)

// exception is an error in ClickHouse's own words: "Code: 62. DB::Exception: … (SYNTAX_ERROR)".
type exception struct {
	code    int
	message string
}

func (e *exception) Error() string { return e.message }

var exceptionCode = regexp.MustCompile(`^Code: (\d+)\. DB::Exception: `)

// newException keeps the engine's text and finds its code. Text without a code is an exception of the C++ library;
// the server reports those as code 1001.
func newException(text string) *exception {
	text = strings.TrimRight(strings.TrimPrefix(text, "Error: "), "\n ")
	m := exceptionCode.FindStringSubmatch(text)
	if m == nil {
		return &exception{codeStdException, fmt.Sprintf("Code: %d. DB::Exception: %s. (STD_EXCEPTION)", codeStdException, text)}
	}
	code, err := strconv.Atoi(m[1])
	if err != nil {
		code = codeStdException
	}
	return &exception{code, unwrap(text, m[0])}
}

// rewrapped is what each further layer of the engine adds to the end of an exception that it passes on.
var rewrapped = regexp.MustCompile(`(\(version [^()]*\))\. \([A-Z0-9_]+\)(?: \(version [^()]*\))?$`)

// unwrap undoes the layers "Code: 73. DB::Exception: Code: 73. DB::Exception: …" that the engine puts around an
// exception, so that the text is a server's.
func unwrap(text, prefix string) string {
	for strings.HasPrefix(text[len(prefix):], prefix) {
		text = rewrapped.ReplaceAllString(text[len(prefix):], "$1")
	}
	return text
}

// raise makes an exception of this package's own, in the same form. name is ClickHouse's name of the code.
func raise(code int, name, format string, args ...any) *exception {
	return &exception{code, fmt.Sprintf("Code: %d. DB::Exception: %s. (%s)", code, fmt.Sprintf(format, args...), name)}
}

// asException is err itself, or err as an exception of the C++ library's kind.
func asException(err error) *exception {
	var e *exception
	if errors.As(err, &e) {
		return e
	}
	return newException(err.Error())
}

// body is the text of an error answer. The server ends it with its version and a newline.
func (e *exception) body(version string) string {
	if strings.Contains(e.message, "(version ") {
		return e.message + "\n"
	}
	return e.message + " (version " + version + ")\n"
}

// status is the HTTP status of the exception, as the server chooses it in src/Server/HTTP/exceptionCodeToHTTPStatus.cpp.
func (e *exception) status() int {
	if status, ok := statusOfCode[e.code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

var statusOfCode = map[int]int{
	194: http.StatusUnauthorized, // REQUIRED_PASSWORD

	192: http.StatusForbidden, // UNKNOWN_USER
	193: http.StatusForbidden, // WRONG_PASSWORD
	497: http.StatusForbidden, // ACCESS_DENIED
	512: http.StatusForbidden, // SET_NON_GRANTED_ROLE
	516: http.StatusForbidden, // AUTHENTICATION_FAILED

	6:   http.StatusBadRequest, // CANNOT_PARSE_TEXT
	8:   http.StatusBadRequest, // THERE_IS_NO_COLUMN
	15:  http.StatusBadRequest, // DUPLICATE_COLUMN
	25:  http.StatusBadRequest, // CANNOT_PARSE_ESCAPE_SEQUENCE
	26:  http.StatusBadRequest, // CANNOT_PARSE_QUOTED_STRING
	27:  http.StatusBadRequest, // CANNOT_PARSE_INPUT_ASSERTION_FAILED
	36:  http.StatusBadRequest, // BAD_ARGUMENTS
	37:  http.StatusBadRequest, // UNKNOWN_ELEMENT_IN_AST
	38:  http.StatusBadRequest, // CANNOT_PARSE_DATE
	41:  http.StatusBadRequest, // CANNOT_PARSE_DATETIME
	44:  http.StatusBadRequest, // ILLEGAL_COLUMN
	53:  http.StatusBadRequest, // TYPE_MISMATCH
	62:  http.StatusBadRequest, // SYNTAX_ERROR
	72:  http.StatusBadRequest, // CANNOT_PARSE_NUMBER
	117: http.StatusBadRequest, // INCORRECT_DATA
	123: http.StatusBadRequest, // UNKNOWN_TYPE_OF_AST_NODE
	167: http.StatusBadRequest, // TOO_DEEP_AST
	168: http.StatusBadRequest, // TOO_BIG_AST
	223: http.StatusBadRequest, // UNEXPECTED_AST_STRUCTURE
	321: http.StatusBadRequest, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
	376: http.StatusBadRequest, // CANNOT_PARSE_UUID
	427: http.StatusBadRequest, // CANNOT_COMPILE_REGEXP
	441: http.StatusBadRequest, // CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
	675: http.StatusBadRequest, // CANNOT_PARSE_IPV4
	676: http.StatusBadRequest, // CANNOT_PARSE_IPV6

	46:  http.StatusNotFound, // UNKNOWN_FUNCTION
	47:  http.StatusNotFound, // UNKNOWN_IDENTIFIER
	50:  http.StatusNotFound, // UNKNOWN_TYPE
	56:  http.StatusNotFound, // UNKNOWN_STORAGE
	60:  http.StatusNotFound, // UNKNOWN_TABLE
	63:  http.StatusNotFound, // UNKNOWN_AGGREGATE_FUNCTION
	73:  http.StatusNotFound, // UNKNOWN_FORMAT
	78:  http.StatusNotFound, // UNKNOWN_TYPE_OF_QUERY
	81:  http.StatusNotFound, // UNKNOWN_DATABASE
	115: http.StatusNotFound, // UNKNOWN_SETTING
	152: http.StatusNotFound, // UNKNOWN_DIRECTION_OF_SORTING
	336: http.StatusNotFound, // UNKNOWN_DATABASE_ENGINE
	511: http.StatusNotFound, // UNKNOWN_ROLE

	48:  http.StatusNotImplemented,        // NOT_IMPLEMENTED
	76:  http.StatusServiceUnavailable,    // CANNOT_OPEN_FILE
	159: http.StatusRequestTimeout,        // TIMEOUT_EXCEEDED
	209: http.StatusServiceUnavailable,    // SOCKET_TIMEOUT
	229: http.StatusRequestEntityTooLarge, // QUERY_IS_TOO_LARGE
	381: http.StatusLengthRequired,        // HTTP_LENGTH_REQUIRED
	439: http.StatusServiceUnavailable,    // CANNOT_SCHEDULE_TASK
	779: http.StatusUnsupportedMediaType,  // UNSUPPORTED_MEDIA_TYPE
}
