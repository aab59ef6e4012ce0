package clickhouse

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goldenReplicated = "testdata/replicated.sql"

// The migrations for a cluster are those for one server with other engines and ON CLUSTER, and a golden file shows them. VERBATIM_UPDATE=1
// writes it anew.
func TestMigrationsForACluster(t *testing.T) {
	t.Parallel()
	plain, replicated := read(t, ""), read(t, "verbatim")
	original := ""
	for _, name := range names(t) {
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			t.Fatal(err)
		}
		original += string(text)
	}
	if plain != original {
		t.Error("the migrations for one server are not the files as they are")
	}
	if os.Getenv("VERBATIM_UPDATE") != "" {
		if err := os.WriteFile(goldenReplicated, []byte(replicated), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenReplicated)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), replicated); diff != "" {
		t.Errorf("migrations for a cluster (-%s +now):\n%s", goldenReplicated, diff)
	}
}

// No statement was forgotten, also none of a migration that comes later.
func TestEveryDefinitionIsForTheWholeCluster(t *testing.T) {
	t.Parallel()
	comment := regexp.MustCompile(`(?m)^\s*--.*$`)
	statements := 0
	for _, statement := range strings.Split(comment.ReplaceAllString(read(t, "verbatim"), ""), ";\n") {
		statement = strings.TrimSpace(statement)
		if statement == "" {
			continue
		}
		statements++
		if n := strings.Count(statement, " ON CLUSTER 'verbatim'"); n != 1 {
			t.Errorf("%d times ON CLUSTER in:\n%s", n, statement)
		}
		if regexp.MustCompile(`ENGINE = \w*MergeTree`).MatchString(statement) && !strings.Contains(statement, "ENGINE = Replicated") {
			t.Errorf("an engine that is not replicated in:\n%s", statement)
		}
	}
	if statements < 20 {
		t.Errorf("only %d statements were found", statements)
	}
}

func names(t *testing.T) []string {
	t.Helper()
	found, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, c cluster) string {
	t.Helper()
	var all strings.Builder
	for _, name := range names(t) {
		text, err := fs.ReadFile(clusterFS{migrations, c}, name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

func TestClusterOfAnAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		dsn, rest string
		cluster   cluster
		refused   bool
	}{
		{dsn: "http://h:8123/d", rest: "http://h:8123/d"},
		{dsn: "http://u:p%40@h:8123/d?cluster=main&dial_timeout=1s", rest: "http://u:p%40@h:8123/d?dial_timeout=1s", cluster: "main"},
		{dsn: "clickhouse://a:9000,b:9000/d?cluster={cluster}", rest: "clickhouse://a:9000,b:9000/d", cluster: "{cluster}"},
		{dsn: "http://h/d?cluster=", refused: true},
		{dsn: "http://h/d?cluster=a'b", refused: true},
	} {
		rest, on, err := clusterOf(c.dsn)
		if (err != nil) != c.refused || err == nil && (rest != c.rest || on != c.cluster) {
			t.Errorf("%s: %q, cluster %q, %v", c.dsn, rest, on, err)
		}
	}
}

func TestShadowOfACluster(t *testing.T) {
	t.Parallel()
	h, err := (&Store{cluster: "main"}).Shadow("day")
	if err != nil {
		t.Fatal(err)
	}
	want := `CREATE TABLE day ON CLUSTER 'main' AS executions
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', version)
PARTITION BY created_day
ORDER BY (created_day, execution_id)
SETTINGS index_granularity = 1024, min_bytes_for_wide_part = 268435456`
	if diff := cmp.Diff(want, h.definition()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
