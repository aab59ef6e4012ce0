package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"verbatim.dev/events/kafka"
)

func TestServerAddresses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("VERBATIM_DATA", dir)
	for _, c := range []struct {
		server, url string
		local       bool
	}{
		{"", "http://127.0.0.1:7410", true},
		{"127.0.0.1:80", "http://127.0.0.1:80", true},
		{"http://localhost:80/", "http://localhost:80", true},
		{"http://[::1]:80", "http://[::1]:80", true},
		{"https://verbatim.example", "https://verbatim.example", false},
		{"http://10.0.0.1:80/base/", "http://10.0.0.1:80/base", false},
	} {
		f := serverFlags{Server: c.server}
		if f.url() != c.url || f.isLocal() != c.local {
			t.Errorf("%q: %s, local %v", c.server, f.url(), f.isLocal())
		}
	}
	if err := (endpoints{HTTP: "127.0.0.1:1234"}).write(dir); err != nil {
		t.Fatal(err)
	}
	if got := (serverFlags{}).url(); got != "http://127.0.0.1:1234" {
		t.Errorf("the running stack is not found: %s", got)
	}
	if err := removeEndpoints(dir); err != nil {
		t.Fatal(err)
	}
	if err := removeEndpoints(dir); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestKafkaFlags(t *testing.T) {
	t.Setenv("VERBATIM_KAFKA_PASSWORD", "")
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("not-a-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	brokers := []string{"b:1"}
	for says, f := range map[string]kafkaFlags{
		"":                            {Kafka: brokers, KafkaSASL: "scram-sha-512", KafkaUser: "u", KafkaPasswordFile: password, KafkaTLS: true, KafkaCompression: "lz4"},
		"no broker is named":          {},
		"\"br\" is not known":         {Kafka: brokers, KafkaCompression: "br"},
		"host:port":                   {Kafka: []string{"b"}},
		"needs a user name":           {Kafka: brokers, KafkaSASL: "plain", KafkaUser: "u"},
		"goes with --kafka-sasl":      {Kafka: brokers, KafkaUser: "u", KafkaSASL: "none"},
		"go with --kafka-tls":         {Kafka: brokers, KafkaTLSCA: junk},
		"no certificate":              {Kafka: brokers, KafkaTLS: true, KafkaTLSCA: junk},
		"go together":                 {Kafka: brokers, KafkaTLS: true, KafkaTLSCert: junk},
		"--kafka-tls-cert: ":          {Kafka: brokers, KafkaTLS: true, KafkaTLSCert: junk, KafkaTLSKey: junk},
		"no such file":                {Kafka: brokers, KafkaTLS: true, KafkaTLSCA: filepath.Join(dir, "none")},
		"--kafka-password-file: open": {Kafka: brokers, KafkaSASL: "plain", KafkaUser: "u", KafkaPasswordFile: filepath.Join(dir, "none")},
	} {
		c, err := f.config(nil)
		if (says == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), says)) {
			t.Errorf("want %q, got %v", says, err)
		}
		if says == "" && (string(c.Security.Password) != "not-a-secret" || c.Security.TLS == nil || c.Security.Mechanism != "SCRAM-SHA-512" || c.Compression != kafka.CompressionLZ4) {
			t.Errorf("configured %+v, %s", c.Security, c.Compression)
		}
	}
}

func TestTheConfigurationFile(t *testing.T) {
	t.Setenv("VERBATIM_KAFKA", "")
	file := filepath.Join(t.TempDir(), "verbatim.json")
	run := func(content string, args ...string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		if code := Main(append(args, "--config", file), strings.NewReader(""), &bytes.Buffer{}, &stderr); code != exitUsage {
			t.Errorf("exit code %d: %s", code, stderr.String())
		}
		return stderr.String()
	}
	for _, c := range []struct{ content, says string }{
		{`{"kafka": ["b", "c:1"]}`, `"b" is not host:port`}, // The list arrives.
		{`{"kafka": "b:1", "kafka-sasl": "plain"}`, "user name"},
		{`{"kafka": "b:1", "slots": 4, "kafka-user": "u"}`, "--kafka-sasl"}, // slots is another service's.
		{`{"kafak": "b:1"}`, "kafak"},
		{`{"kafka": "b:1", "kafka-compression": "br"}`, "kafka-compression"},
		{`{"kafka": {"a": 1}}`, "object"},
		{`[]`, "JSON object"},
		{`{`, "JSON object"},
	} {
		if got := run(c.content, "preparer"); !strings.Contains(got, c.says) {
			t.Errorf("%s: %q does not speak of %q", c.content, got, c.says)
		}
	}
	if got := run(`{"kafka": "b"}`, "preparer", "--kafka", "also-wrong"); !strings.Contains(got, "also-wrong") {
		t.Errorf("a flag does not go before the file: %s", got)
	}
}

// What deploy/ shows must be what the program takes.
func TestTheDeploymentsExampleIsValid(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/systemd/verbatim@.service")
	if err != nil {
		t.Fatal(err)
	}
	const start = "ExecStart=/usr/local/bin/verbatim "
	_, line, found := strings.Cut(string(unit), start)
	if !found {
		t.Fatalf("the unit has no %s", start)
	}
	line, _, _ = strings.Cut(line, "\n")
	for _, service := range []string{"preparer", "runner", "recorder", "projector", "gateway", "setup"} {
		args := strings.Fields(strings.NewReplacer("%i", service, "/etc/verbatim/verbatim.json", "../../deploy/verbatim.json").Replace(line))
		var g grammar
		parser, err := newParser(&g, &bytes.Buffer{}, &bytes.Buffer{}, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(args); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if kafka := map[string][]string{"preparer": g.Preparer.Kafka, "runner": g.Runner.Kafka, "recorder": g.Recorder.Kafka, "projector": g.Projector.Kafka, "gateway": g.Gateway.Kafka, "setup": g.Setup.Kafka}[service]; len(kafka) != 1 {
			t.Errorf("%s: the file does not arrive: %q", service, kafka)
		}
	}
}

// Go promotes no method that two embedded structs have: a command with two such checks would have none, and nobody would notice.
func TestNoCheckOfFlagsIsLost(t *testing.T) {
	t.Parallel()
	validator := reflect.TypeFor[interface{ Validate() error }]()
	var look func(path string, command reflect.Type) int
	look = func(path string, command reflect.Type) (found int) {
		checks := reflect.PointerTo(command).Implements(validator)
		for i := range command.NumField() {
			f := command.Field(i)
			if f.Type.Kind() != reflect.Struct {
				continue
			}
			if _, ok := f.Tag.Lookup("cmd"); ok {
				found += look(path+" "+strings.ToLower(f.Name), f.Type)
			} else if f.Anonymous && reflect.PointerTo(f.Type).Implements(validator) {
				if found++; !checks {
					t.Errorf("%s embeds %s, which is not checked", path, f.Type.Name())
				}
			}
		}
		return found
	}
	if found := look("verbatim", reflect.TypeFor[grammar]()); found < 5 {
		t.Errorf("only %d checks were found", found)
	}
}
