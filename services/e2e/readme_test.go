package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every shell command in README.md is in testdata/readme.txtar, in the README's own words but for what stands in place: the
// addresses, which the README writes as the defaults, and the program's path.
func TestEveryCommandOfTheREADMEIsRun(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	scenario, err := os.ReadFile("testdata/readme.txtar")
	if err != nil {
		t.Fatal(err)
	}
	run := strings.NewReplacer("$KAFKA", "127.0.0.1:7411", "$CLICKHOUSE", "127.0.0.1:7412", "$HTTP", "127.0.0.1:7410").Replace(strings.ReplaceAll(string(scenario), "'http://'$CLICKHOUSE'", "'http://$CLICKHOUSE"))
	var lines []string
	for line := range strings.Lines(run) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "! ")
		line = strings.TrimPrefix(line, "exec ")
		lines = append(lines, regexp.MustCompile(` &\w+&$`).ReplaceAllString(line, ""))
	}
	// What runs elsewhere: CI runs these targets, and a shell's own words have no effect in a scenario.
	elsewhere := []string{"make demo", "make test", "make deps build", "export VERBATIM_DATA=$PWD/verbatim-data"}
	in := false
	for line := range strings.Lines(string(readme)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			in = line == "```sh"
			continue
		}
		if !in || line == "" || slices.Contains(elsewhere, line) {
			continue
		}
		line = strings.TrimPrefix(line, "bin/")
		line = strings.NewReplacer("broker:9092", "127.0.0.1:7411", "clickhouse:8123", "127.0.0.1:7412").Replace(line)
		line = strings.Join(strings.Fields(line), " ")
		if !slices.Contains(lines, line) {
			t.Errorf("README.md has a command that testdata/readme.txtar does not run: %s", line)
		}
	}
}
