package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"verbatim.dev/events/kafka"
)

// kafkaFlags say how a service reaches Kafka. They are the same for every service, and may come from flags, the
// environment, or the file that --config names.
type kafkaFlags struct {
	Kafka             []string `env:"VERBATIM_KAFKA" group:"Kafka:" placeholder:"HOST:PORT" help:"Brokers to start from, separated by commas."`
	KafkaClientID     string   `default:"verbatim" env:"VERBATIM_KAFKA_CLIENT_ID" group:"Kafka:" help:"Name of this client in the broker's logs and quotas."`
	TopicPrefix       string   `env:"VERBATIM_TOPIC_PREFIX" group:"Kafka:" help:"Prefix of every topic and group, so that installations can share a cluster."`
	KafkaCompression  string   `enum:"zstd,lz4,snappy,gzip,none" default:"zstd" env:"VERBATIM_KAFKA_COMPRESSION" group:"Kafka:" help:"Compression of what is written: zstd, lz4, snappy, gzip or none."`
	KafkaTLS          bool     `name:"kafka-tls" env:"VERBATIM_KAFKA_TLS" group:"Kafka:" help:"Encrypt connections with TLS."`
	KafkaTLSCA        string   `name:"kafka-tls-ca" env:"VERBATIM_KAFKA_TLS_CA" group:"Kafka:" placeholder:"FILE" help:"Certificates (PEM) that may sign the broker's. Default: the system's."`
	KafkaTLSCert      string   `name:"kafka-tls-cert" env:"VERBATIM_KAFKA_TLS_CERT" group:"Kafka:" placeholder:"FILE" help:"This client's certificate (PEM), where the broker asks for one."`
	KafkaTLSKey       string   `name:"kafka-tls-key" env:"VERBATIM_KAFKA_TLS_KEY" group:"Kafka:" placeholder:"FILE" help:"The key (PEM) of --kafka-tls-cert."`
	KafkaSASL         string   `name:"kafka-sasl" enum:"none,plain,scram-sha-256,scram-sha-512" default:"none" env:"VERBATIM_KAFKA_SASL" group:"Kafka:" help:"SASL mechanism: none, plain, scram-sha-256 or scram-sha-512."`
	KafkaUser         string   `env:"VERBATIM_KAFKA_USER" group:"Kafka:" placeholder:"NAME" help:"User for SASL. The password comes from the environment, VERBATIM_KAFKA_PASSWORD, or a file; never from an argument."`
	KafkaPasswordFile string   `env:"VERBATIM_KAFKA_PASSWORD_FILE" group:"Kafka:" placeholder:"FILE" help:"File that holds the password for SASL."`
}

// config reads what the flags name and returns every fault, joined.
func (f kafkaFlags) config(logger *slog.Logger) (kafka.Config, error) {
	c := kafka.Config{Brokers: f.Kafka, ClientID: f.KafkaClientID, TopicPrefix: f.TopicPrefix, Compression: kafka.Compression(f.KafkaCompression), Logger: logger}
	if len(f.Kafka) == 0 {
		return c, errors.New("no broker is named: say one with --kafka HOST:PORT or VERBATIM_KAFKA")
	}
	var errs []error
	if f.KafkaSASL != "" && f.KafkaSASL != "none" {
		c.Security.Mechanism, c.Security.Username = kafka.Mechanism(strings.ToUpper(f.KafkaSASL)), f.KafkaUser
		password, err := f.password()
		c.Security.Password = password
		errs = append(errs, err)
	} else if f.KafkaUser != "" {
		errs = append(errs, errors.New("--kafka-user goes with --kafka-sasl"))
	}
	if f.KafkaTLS {
		t, err := f.tls()
		c.Security.TLS = t
		errs = append(errs, err)
	} else if f.KafkaTLSCA != "" || f.KafkaTLSCert != "" || f.KafkaTLSKey != "" {
		errs = append(errs, errors.New("--kafka-tls-ca, --kafka-tls-cert and --kafka-tls-key go with --kafka-tls"))
	}
	if err := errors.Join(errs...); err != nil {
		return c, err
	}
	return c, c.Validate()
}

func (f kafkaFlags) password() (kafka.Secret, error) {
	if f.KafkaPasswordFile == "" {
		return kafka.Secret(os.Getenv("VERBATIM_KAFKA_PASSWORD")), nil
	}
	text, err := os.ReadFile(f.KafkaPasswordFile)
	if err != nil {
		return "", fmt.Errorf("--kafka-password-file: %w", err)
	}
	return kafka.Secret(strings.TrimRight(string(text), "\r\n")), nil
}

func (f kafkaFlags) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.KafkaTLSCA != "" {
		pem, err := os.ReadFile(f.KafkaTLSCA)
		if err != nil {
			return nil, fmt.Errorf("--kafka-tls-ca: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--kafka-tls-ca: %s holds no certificate in PEM form", f.KafkaTLSCA)
		}
	}
	if (f.KafkaTLSCert == "") != (f.KafkaTLSKey == "") {
		return nil, errors.New("--kafka-tls-cert and --kafka-tls-key go together")
	}
	if f.KafkaTLSCert != "" {
		pair, err := tls.LoadX509KeyPair(f.KafkaTLSCert, f.KafkaTLSKey)
		if err != nil {
			return nil, fmt.Errorf("--kafka-tls-cert: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
