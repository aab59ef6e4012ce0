package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
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
	// Compression of the batches that Publishers write, unless their options say another one; zero: zstd.
	Compression Compression
	// Logger gets changes of state; nil discards them.
	Logger *slog.Logger
}

// Mechanism is a SASL mechanism.
type Mechanism string

// The mechanisms; the zero Mechanism is no SASL. PLAIN (RFC 4616) sends the password as it is, so it wants
// TLS; SCRAM (RFC 5802, RFC 7677) does not send it.
const (
	MechanismPlain    Mechanism = "PLAIN"
	MechanismSCRAM256 Mechanism = "SCRAM-SHA-256"
	MechanismSCRAM512 Mechanism = "SCRAM-SHA-512"
)

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
	if _, ok := codecs[c.Compression]; !ok {
		errs = append(errs, fmt.Errorf("compression: %q is not known: want zstd, lz4, snappy, gzip or none", c.Compression))
	}
	switch c.Security.Mechanism {
	case "":
		if c.Security.Username != "" || c.Security.Password != "" {
			errs = append(errs, errors.New("security: a user name or password without a mechanism"))
		}
	case MechanismPlain, MechanismSCRAM256, MechanismSCRAM512:
		if c.Security.Username == "" || c.Security.Password == "" {
			errs = append(errs, fmt.Errorf("security: mechanism %s needs a user name and a password", c.Security.Mechanism))
		} else if _, err := c.mechanism(); err != nil {
			errs = append(errs, fmt.Errorf("security: %w", err))
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

// mechanism fails for credentials that SASLprep (RFC 4013) does not allow.
func (c Config) mechanism() (sasl.Mechanism, error) {
	password := string(c.Security.Password)
	switch c.Security.Mechanism {
	case MechanismPlain:
		return plain.Mechanism{Username: c.Security.Username, Password: password}, nil
	case MechanismSCRAM256:
		return scramMechanism(scram.SHA256, c.Security.Username, password)
	case MechanismSCRAM512:
		return scramMechanism(scram.SHA512, c.Security.Username, password)
	default:
		return nil, nil
	}
}

// scramMechanism keeps the library's error to itself: it may quote the password.
func scramMechanism(a scram.Algorithm, username, password string) (sasl.Mechanism, error) {
	m, err := scram.Mechanism(a, username, password)
	if err != nil {
		return nil, fmt.Errorf("user name or password has characters that %s does not allow", a.Name())
	}
	return m, nil
}
