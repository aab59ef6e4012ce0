package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
)

// Config says how to reach a cluster. The same struct serves publisher, subscriber, admin and reader.
type Config struct {
	// Brokers are the addresses to start from, host:port.
	Brokers []string
	// ClientID names this client in the broker's logs and quotas. Default "verbatim".
	ClientID string
	// TopicPrefix goes before every topic and group name on the wire, so that two installations can
	// share a cluster. Names in this package's API are without it.
	TopicPrefix string
	// Security is how connections are protected; the zero value is plain text.
	Security Security
	// Logger gets changes of state; nil discards them.
	Logger *slog.Logger
}

// Mechanism is a SASL mechanism.
type Mechanism string

// MechanismPlain is SASL PLAIN (RFC 4616); the zero Mechanism is no SASL.
const MechanismPlain Mechanism = "PLAIN"

// Security protects connections to the brokers.
type Security struct {
	// TLS, when set, is used for every connection.
	TLS *tls.Config
	// Mechanism, Username and Password authenticate with SASL.
	Mechanism Mechanism
	Username  string
	Password  Secret
}

// Secret is a string that does not show itself in logs and errors.
type Secret string

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "***" }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("***") }

// MarshalText hides the secret from encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Validate reports everything wrong with the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: at least one host:port is needed"))
	}
	for _, b := range c.Brokers {
		if _, port, err := net.SplitHostPort(b); err != nil || port == "" {
			errs = append(errs, fmt.Errorf("brokers: %q is not host:port", b))
		}
	}
	if c.TopicPrefix != "" && !validName(c.TopicPrefix) {
		errs = append(errs, fmt.Errorf("topic prefix: %q has characters Kafka does not allow in a topic", c.TopicPrefix))
	}
	switch c.Security.Mechanism {
	case "":
		if c.Security.Username != "" || c.Security.Password != "" {
			errs = append(errs, errors.New("security: a user name or password without a mechanism"))
		}
	case MechanismPlain:
		if c.Security.Username == "" || c.Security.Password == "" {
			errs = append(errs, fmt.Errorf("security: mechanism %s needs a user name and a password", c.Security.Mechanism))
		}
	default:
		errs = append(errs, fmt.Errorf("security: mechanism %q is not known", c.Security.Mechanism))
	}
	return errors.Join(errs...)
}

// validName is Kafka's rule for topic names: letters, digits, dot, underscore, hyphen; at most 249 bytes
// (org.apache.kafka.common.internals.Topic).
func validName(s string) bool {
	if s == "" || len(s) > 249 || s == "." || s == ".." {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
		return !ok
	}) < 0
}

// GroupID is the name of the consumer group that a service uses for a topic, without the prefix. There
// is one group per service and topic, because members of one group with different topics rebalance
// each other for nothing.
func GroupID(group, topic string) string { return group + "." + topic }

func (c Config) wireTopic(topic string) string { return c.TopicPrefix + topic }

func (c Config) wireGroup(group, topic string) string {
	return c.TopicPrefix + GroupID(group, topic)
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

func (c Config) clientID() string {
	if c.ClientID == "" {
		return "verbatim"
	}
	return c.ClientID
}

func (c Config) mechanism() sasl.Mechanism {
	switch c.Security.Mechanism {
	case MechanismPlain:
		return plain.Mechanism{Username: c.Security.Username, Password: string(c.Security.Password)}
	default:
		return nil
	}
}

// link is one component's access to the cluster. It knows every connection it opened, so that close
// leaves nothing behind, also when a broker does not answer.
type link struct {
	client    *kafkago.Client
	transport *kafkago.Transport
	addr      net.Addr
	config    Config

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
	l.transport = &kafkago.Transport{
		Dial: l.dial, DialTimeout: dialTimeout, ClientID: c.clientID(),
		TLS: c.Security.TLS, SASL: c.mechanism(),
	}
	l.client = &kafkago.Client{Addr: l.addr, Transport: l.transport, Timeout: requestTimeout}
	return l
}

// dialer serves the parts of kafka-go that do not use a transport.
func (l *link) dialer() *kafkago.Dialer {
	return &kafkago.Dialer{
		ClientID: l.config.clientID(), DialFunc: l.dial, Timeout: dialTimeout,
		TLS: l.config.Security.TLS, SASLMechanism: l.config.mechanism(),
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
