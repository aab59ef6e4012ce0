package kafka

import (
	"context"
	"net"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
)

// link is one component's access to the cluster. It knows every connection it opened, so that close
// leaves nothing behind, also when a broker does not answer.
type link struct {
	client    *kafkago.Client
	transport *kafkago.Transport
	addr      net.Addr
	config    Config
	mechanism sasl.Mechanism

	mu        sync.Mutex
	conns     map[net.Conn]struct{}
	closed    bool
	refreshed time.Time
}

const (
	dialTimeout = 5 * time.Second
	// requestTimeout bounds one request, the answer included.
	requestTimeout = 10 * time.Second
)

func newLink(c Config) *link {
	l := &link{config: c, addr: kafkago.TCP(c.Brokers...), conns: map[net.Conn]struct{}{}}
	l.mechanism, _ = c.mechanism() // Validate has seen the error
	l.transport = &kafkago.Transport{
		Dial: l.dial, DialTimeout: dialTimeout, ClientID: c.clientID(),
		TLS: c.Security.TLS, SASL: l.mechanism,
	}
	l.client = &kafkago.Client{Addr: l.addr, Transport: l.transport, Timeout: requestTimeout}
	return l
}

// dialer serves the parts of kafka-go that do not use a transport.
func (l *link) dialer() *kafkago.Dialer {
	return &kafkago.Dialer{
		ClientID: l.config.clientID(), DialFunc: l.dial, Timeout: dialTimeout,
		TLS: l.config.Security.TLS, SASLMechanism: l.mechanism,
	}
}

func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	t := &trackedConn{Conn: c, link: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	l.conns[t] = struct{}{}
	return t, nil
}

// refresh drops what the transport knows of the cluster; the next request asks anew. The transport
// itself would notice a new topic or leader only within its metadata's time to live.
func (l *link) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.refreshed) < 100*time.Millisecond {
		return
	}
	l.refreshed = time.Now()
	l.transport.CloseIdleConnections()
}

func (l *link) close() {
	l.transport.CloseIdleConnections()
	l.mu.Lock()
	l.closed = true
	conns := l.conns
	l.conns = map[net.Conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		_ = c.(*trackedConn).Conn.Close()
	}
}

type trackedConn struct {
	net.Conn
	link *link
}

func (t *trackedConn) Close() error {
	t.link.mu.Lock()
	delete(t.link.conns, t)
	t.link.mu.Unlock()
	return t.Conn.Close()
}
