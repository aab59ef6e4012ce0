package kafka

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/sasl"
)

// link is one component's access to the cluster. It knows every connection it opened, so that close
// leaves nothing behind, also when a broker does not answer.
//
// A transport of kafka-go asks every few seconds for the metadata of every topic there is, unless it was made with
// the names of some; and until the first answer is there nothing else goes through it. In a cluster with thousands of
// topics that costs each client megabytes a minute and its start seconds. So the link's transport knows the topics
// that were asked for, and is replaced when there is another one.
type link struct {
	client    *kafkago.Client // goes through the link
	addr      net.Addr
	config    Config
	mechanism sasl.Mechanism

	mu        sync.Mutex
	topics    []string // on the wire, sorted; not nil, which would mean all
	transport *kafkago.Transport
	conns     map[net.Conn]struct{}
	closed    bool
	refreshed time.Time
}

var _ kafkago.RoundTripper = (*link)(nil)

const (
	dialTimeout = 5 * time.Second
	// requestTimeout bounds one request, the answer included.
	requestTimeout = 10 * time.Second
)

func newLink(c Config) *link {
	l := &link{config: c, addr: kafkago.TCP(c.Brokers...), topics: []string{}, conns: map[net.Conn]struct{}{}}
	l.mechanism, _ = c.mechanism() // Validate has seen the error
	l.transport = l.newTransport()
	l.client = &kafkago.Client{Addr: l.addr, Transport: l, Timeout: requestTimeout}
	return l
}

// newTransport makes one that knows l.topics. It connects with its first request.
func (l *link) newTransport() *kafkago.Transport {
	return &kafkago.Transport{
		Dial: l.dial, DialTimeout: dialTimeout, ClientID: l.config.clientID(), MetadataTopics: l.topics,
		TLS: l.config.Security.TLS, SASL: l.mechanism,
	}
}

// RoundTrip implements kafkago.RoundTripper.
func (l *link) RoundTrip(ctx context.Context, addr net.Addr, req kafkago.Request) (kafkago.Response, error) {
	t, err := l.knowing(topicsOf(req))
	if err != nil {
		return nil, err
	}
	return l.through(ctx, t, addr, req)
}

// through sends the request. When the transport was replaced meanwhile, perhaps before it had connected at all, nobody
// else would release what this request makes it hold: connections, and a goroutine that asks for metadata.
func (l *link) through(ctx context.Context, t *kafkago.Transport, addr net.Addr, req kafkago.Request) (kafkago.Response, error) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed || l.transport != t {
			t.CloseIdleConnections()
		}
	}()
	return t.RoundTrip(ctx, addr, req)
}

// knowing returns a transport that knows the topics.
func (l *link) knowing(topics []string) (*kafkago.Transport, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	var more []string
	for _, t := range topics {
		if _, ok := slices.BinarySearch(l.topics, t); !ok {
			more = append(more, t)
		}
	}
	if len(more) > 0 {
		l.topics = slices.Concat(l.topics, more) // the transport that is replaced keeps reading its own
		slices.Sort(l.topics)
		l.topics = slices.Compact(l.topics)
		l.transport.CloseIdleConnections() // and those in use when their request ends
		l.transport = l.newTransport()
	}
	return l.transport, nil
}

// topicsOf names the topics that a transport must know to send the request or to answer it from its cache.
func topicsOf(req kafkago.Request) []string {
	var topics []string
	switch r := req.(type) {
	case *metadata.Request:
		return r.TopicNames
	case *fetchRequest:
		return []string{r.topic}
	case *produce.Request:
		for _, t := range r.Topics {
			topics = append(topics, t.Topic)
		}
	case *listoffsets.Request:
		for _, t := range r.Topics {
			topics = append(topics, t.Topic)
		}
	case *createtopics.Request: // waits for them to be known
		for _, t := range r.Topics {
			topics = append(topics, t.Name)
		}
	}
	return topics
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
	l.mu.Lock()
	l.transport.CloseIdleConnections()
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
