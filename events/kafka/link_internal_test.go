package kafka

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol/metadata"
)

// TestReplacedTransportIsReleased: a request takes a transport, another one replaces it, and only then the first one
// makes it connect. Without a release it would ask for metadata for ever.
func TestReplacedTransportIsReleased(t *testing.T) {
	for name, end := range map[string]func(*link){
		"replaced": func(l *link) { _, _ = l.knowing([]string{"b"}) },
		"closed":   func(l *link) { l.close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(Config{Brokers: []string{"127.0.0.1:1"}}) // nobody listens
			old, err := l.knowing([]string{"a"})
			if err != nil {
				t.Fatal(err)
			}
			end(l)
			before := discoverers()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := l.through(ctx, old, l.addr, &metadata.Request{TopicNames: []string{"a"}}); err == nil {
				t.Fatal("a broker that does not exist answered")
			}
			for deadline := time.Now().Add(10 * time.Second); discoverers() > before; {
				if time.Now().After(deadline) {
					t.Fatal("the transport that was replaced still asks for metadata")
				}
				time.Sleep(5 * time.Millisecond) // The pace of looking; a goroutine's end sends no signal.
			}
		})
	}
}

// discoverers counts the goroutines of kafka-go that ask for metadata.
func discoverers() int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "kafka-go.(*connPool).discover(")
}

func TestCompressionOfThePublisherGoesBeforeTheConfigurations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ config, options, want Compression }{
		{"", "", ""}, {CompressionLZ4, "", CompressionLZ4}, {CompressionLZ4, CompressionNone, CompressionNone}, {"", CompressionGzip, CompressionGzip},
	} {
		p, err := NewPublisher(Config{Brokers: []string{"127.0.0.1:1"}, Compression: c.config}, PublisherOptions{Compression: c.options})
		if err != nil {
			t.Fatal(err)
		}
		if p.options.Compression != c.want {
			t.Errorf("%q and %q give %q, want %q", c.config, c.options, p.options.Compression, c.want)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := NewPublisher(Config{Brokers: []string{"127.0.0.1:1"}, Compression: "br"}, PublisherOptions{}); err == nil {
		t.Error("br is a compression of Kafka's")
	}
}
