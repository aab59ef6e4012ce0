//go:build apachekafka

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// embeddedOnly are the scenarios that stay on the embedded broker, and why.
var embeddedOnly = map[string]string{
	"alone":          "starts each service with flags of its own, on the stack's own broker",
	"badinput":       "writes to topics by their names",
	"deadletter":     "writes to topics by their names",
	"foreign":        "reads topics by their names",
	"import":         "writes to topics by their names",
	"log_forgets":    "reads topics by their names",
	"out_disk_full":  "starts a runner of its own, on the stack's own broker",
	"producer":       "writes to topics by their names",
	"readme":         "the README's commands are about the embedded broker",
	"sec_two":        "starts more runners with flags of their own, on the stack's own broker",
	"up_disk":        "the disk that fills up is the embedded broker's",
	"up_twice":       "is about the embedded broker's address",
	"up_interrupted": "waits for the embedded broker's start",
}

// TestScenariosOnApacheKafka runs every other scenario on a broker of the Apache project: the one that
// VERBATIM_TEST_KAFKA names (HOST:PORT), or else one that it starts with scripts/kafka/kafka.
func TestScenariosOnApacheKafka(t *testing.T) {
	broker := os.Getenv("VERBATIM_TEST_KAFKA")
	if broker == "" {
		broker = startApacheKafka(t)
	}
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	left := map[string]bool{}
	for _, name := range names {
		scenario := strings.TrimSuffix(filepath.Base(name), ".txtar")
		if embeddedOnly[scenario] != "" {
			left[scenario] = true
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"kcat", "$KAFKA"} {
			if bytes.Contains(text, []byte(word)) {
				t.Errorf("%s says %s: it cannot run with a topic prefix; name it in embeddedOnly", name, word)
			}
		}
		files = append(files, name)
	}
	for scenario := range embeddedOnly {
		if !left[scenario] {
			t.Errorf("embeddedOnly names %s, which is no scenario", scenario)
		}
	}
	slices.Sort(files)
	// Every scenario has topics of its own; those that share a stack share its topics.
	var count atomic.Int64
	prefix := fmt.Sprintf("e2e%d.", time.Now().UnixNano())
	run(t, func(e *testscript.Env) {
		e.Setenv("VERBATIM_KAFKA_BROKER", broker)
		e.Setenv("VERBATIM_TOPIC_PREFIX", fmt.Sprintf("%s%d.", prefix, count.Add(1)))
	}, testscript.Params{Files: files})
}

func startApacheKafka(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script, err := filepath.Abs("../../scripts/kafka/kafka")
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	start := exec.CommandContext(t.Context(), script, "start", dir)
	start.Stderr = &complaint
	out, err := start.Output()
	if err != nil {
		t.Fatalf("start Apache Kafka: %v\n%s", err, complaint.String())
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, script, "stop", dir).CombinedOutput(); err != nil {
			t.Errorf("stop Apache Kafka: %v\n%s", err, out)
		}
	})
	return strings.TrimSpace(string(out))
}
