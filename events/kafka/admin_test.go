package kafka_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kfake"

	"verbatim.dev/events/kafka"
)

func TestTopicsAreMadeAndChecked(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	want := []kafka.Topic{{Name: "a", Partitions: 3, Config: map[string]string{"retention.ms": "1000"}}, {Name: "b", Partitions: 1}}
	if err := kafka.CheckTopics(t.Context(), b.config(), want); !errors.Is(err, kafka.ErrUnknownTopic) || !strings.Contains(err.Error(), ": b") {
		t.Errorf("missing: %v", err)
	}
	for range 2 {
		if err := kafka.EnsureTopics(t.Context(), b.config(), want); err != nil {
			t.Fatal(err)
		}
	}
	if err := kafka.CheckTopics(t.Context(), b.config(), want); err != nil {
		t.Error(err)
	}
	want[0].Partitions = 4
	for name, do := range map[string]func() error{
		"ensure": func() error { return kafka.EnsureTopics(t.Context(), b.config(), want) },
		"check":  func() error { return kafka.CheckTopics(t.Context(), b.config(), want) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "topic a has 3 partitions, it must have 4") {
			t.Errorf("%s with a wrong count: %v", name, err)
		}
	}
}

func TestUnreachableBrokerIsClearWithinTenSeconds(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	began := time.Now()
	err = kafka.CheckTopics(t.Context(), kafka.Config{Brokers: []string{addr}}, []kafka.Topic{{Name: "a", Partitions: 1}})
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestOffsets(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	topic := b.topic(t, 2)
	p := publisher(t, b.config(), kafka.PublisherOptions{})
	write := func(n int) {
		var batch []*message.Message
		for i := range n {
			batch = append(batch, keyed(keyFor(0, 2), fmt.Sprint(i), "x"))
		}
		if err := p.Publish(topic, batch...); err != nil {
			t.Fatal(err)
		}
	}
	write(3)
	first := records(t, b.config(), topic, 0)[2].Time
	eventually(t, "the clock moves", func() bool { return time.Since(first) > 5*time.Millisecond })
	between := time.Now()
	write(2)
	a, err := kafka.NewAdmin(b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	deleteRecords(t, foreign(t, b.config()), topic, 1)
	for name, c := range map[string]struct {
		got  func() (map[int]int64, error)
		want map[int]int64
	}{
		"end":   {func() (map[int]int64, error) { return a.EndOffsets(t.Context(), topic) }, map[int]int64{0: 5, 1: 0}},
		"first": {func() (map[int]int64, error) { return a.FirstOffsets(t.Context(), topic) }, map[int]int64{0: 1, 1: 0}},
		"at":    {func() (map[int]int64, error) { return a.OffsetsAt(t.Context(), topic, between) }, map[int]int64{0: 3, 1: 0}},
		"later": {func() (map[int]int64, error) {
			return a.OffsetsAt(t.Context(), topic, time.Now().Add(time.Hour))
		}, map[int]int64{0: 5, 1: 0}},
		"nothing committed": {func() (map[int]int64, error) { return a.CommittedOffsets(t.Context(), "g", topic) }, map[int]int64{}},
	} {
		got, err := c.got()
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
	if _, err := a.EndOffsets(t.Context(), "nowhere"); !errors.Is(err, kafka.ErrUnknownTopic) {
		t.Errorf("unknown topic: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	const secret = "correct horse"
	for _, mechanism := range []kafka.Mechanism{kafka.MechanismPlain, kafka.MechanismSCRAM256, kafka.MechanismSCRAM512} {
		t.Run(string(mechanism), func(t *testing.T) {
			t.Parallel()
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(string(mechanism), "user", secret))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			c := kafka.Config{Brokers: cluster.ListenAddrs(), Security: kafka.Security{Mechanism: mechanism, Username: "user", Password: secret}}
			if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: "t", Partitions: 1}}); err != nil {
				t.Fatal(err)
			}
			fill(t, c, "t", 1)
			receive(t, subscribe(t, subscriber(t, c, kafka.SubscriberOptions{Group: "g"}), "t")).Ack()

			c.Security.Password = "wrong donkey"
			began := time.Now()
			err = kafka.CheckTopics(t.Context(), c, []kafka.Topic{{Name: "t", Partitions: 1}})
			if err == nil || time.Since(began) > 30*time.Second || !strings.Contains(err.Error(), "are user name, password") || strings.Contains(err.Error(), "donkey") {
				t.Errorf("wrong password: %v after %s", err, time.Since(began))
			}
			if shown := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(shown, "donkey") {
				t.Errorf("the configuration shows its password: %s", shown)
			}
		})
	}
}

// certificate is good for 127.0.0.1 and signed by itself.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTLS(t *testing.T) {
	t.Parallel()
	own, pool := certificate(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{Certificates: []tls.Certificate{own}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c := kafka.Config{Brokers: cluster.ListenAddrs(), Security: kafka.Security{TLS: &tls.Config{RootCAs: pool}}}
	if err := kafka.EnsureTopics(t.Context(), c, []kafka.Topic{{Name: "t", Partitions: 1}}); err != nil {
		t.Fatal(err)
	}
	fill(t, c, "t", 1)
	receive(t, subscribe(t, subscriber(t, c, kafka.SubscriberOptions{Group: "g"}), "t")).Ack()
	c.Security.TLS = &tls.Config{}
	if err := kafka.CheckTopics(t.Context(), c, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a stranger's certificate: %v", err)
	}
}

func TestConfigSaysEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := kafka.NewSubscriber(kafka.Config{
		Brokers: []string{"nowhere"}, TopicPrefix: "a/b", Security: kafka.Security{Mechanism: "GSSAPI"},
	}, kafka.SubscriberOptions{MaxInFlight: -1})
	for _, want := range []string{"nowhere", "a/b", "GSSAPI", "group", "max in flight"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if _, err := kafka.NewPublisher(kafka.Config{}, kafka.PublisherOptions{Compression: "rar"}); err == nil || !strings.Contains(err.Error(), "rar") || !strings.Contains(err.Error(), "brokers") {
		t.Errorf("publisher: %v", err)
	}
}
