package clickhouse

import (
	"net/url"
	"strconv"
	"sync"
	"time"
)

// ClickHouse's defaults of default_session_timeout and max_session_timeout.
const (
	defaultSessionTimeout = 60 * time.Second
	maxSessionTimeout     = time.Hour
)

// sessions holds the connections of HTTP sessions (session_id), so that temporary tables and SET live from one request
// to the next. A request without session_id has a connection of its own that ends with it.
type sessions struct {
	engine *engine

	mu   sync.Mutex
	open map[string]*session
}

type session struct {
	conn  *conn
	busy  bool
	timer *time.Timer
}

func newSessions(e *engine) *sessions { return &sessions{engine: e, open: map[string]*session{}} }

// acquire takes the session that the parameters name, or makes it. release gives it back and starts its timeout.
func (s *sessions) acquire(params url.Values) (*conn, func(), error) {
	id := params.Get("session_id")
	timeout, err := sessionTimeout(params.Get("session_timeout"))
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.open[id]
	switch {
	case found == nil && params.Get("session_check") == "1":
		return nil, nil, raise(codeSessionNotFound, "SESSION_NOT_FOUND", "Session %s not found", id)
	case found == nil:
		c, err := s.engine.connect()
		if err != nil {
			return nil, nil, err
		}
		found = &session{conn: c}
		s.open[id] = found
	case found.busy:
		return nil, nil, raise(codeSessionIsLocked, "SESSION_IS_LOCKED", "Session %s is locked by a concurrent client", id)
	default:
		found.timer.Stop()
	}
	found.busy = true
	closeNow := params.Get("close_session") == "1"
	return found.conn, func() { s.release(id, found, timeout, closeNow) }, nil
}

func sessionTimeout(text string) (time.Duration, error) {
	if text == "" {
		return defaultSessionTimeout, nil
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, raise(codeInvalidSessionTimeout, "INVALID_SESSION_TIMEOUT", "Invalid session timeout: '%s'", text)
	}
	timeout := time.Duration(seconds) * time.Second
	if timeout > maxSessionTimeout {
		return 0, raise(codeInvalidSessionTimeout, "INVALID_SESSION_TIMEOUT", "Session timeout '%s' is larger than max_session_timeout: %d. Maximum session timeout could be modified in configuration file", text, int(maxSessionTimeout.Seconds()))
	}
	return timeout, nil
}

func (s *sessions) release(id string, used *session, timeout time.Duration, closeNow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used.busy = false
	if closeNow {
		s.drop(id, used)
		return
	}
	used.timer = time.AfterFunc(timeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[id] == used && !used.busy {
			s.drop(id, used)
		}
	})
}

func (s *sessions) drop(id string, used *session) {
	delete(s.open, id)
	used.conn.close()
}

// close ends all sessions. No request is at work any more.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, used := range s.open {
		if used.timer != nil {
			used.timer.Stop()
		}
		s.drop(id, used)
	}
}
