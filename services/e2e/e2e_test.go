// Package e2e runs scenarios against the real program: real processes, the real wire protocols, real
// signals. Each scenario is a script in testdata that a person can read from top to bottom; the
// commands beside testscript's own are in commands_test.go.
package e2e

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"verbatim.dev/services/cli"
)

func TestMain(m *testing.M) {
	// The test binary is the program: testscript puts it on PATH under this name.
	testscript.Main(m, map[string]func(){
		"verbatim":          func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"verbatim-unwaited": unwaited,
	})
}

func TestScenarios(t *testing.T) {
	t.Parallel()
	run(t, nil, testscript.Params{Dir: "testdata"})
}

// run runs scenarios. more, if not nil, adds to the environment of each.
func run(t *testing.T, more func(*testscript.Env), p testscript.Params) {
	common := &shared{}
	t.Cleanup(func() { common.stop(t) })
	p.Setup = func(e *testscript.Env) error {
		for _, name := range []string{"VERBATIM_LIBCHDB", "VERBATIM_CACHE", "XDG_CACHE_HOME", "VERBATIM_E2E_LINE", "VERBATIM_E2E_OUTPUT"} {
			e.Setenv(name, os.Getenv(name))
		}
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		if os.Getenv("XDG_CACHE_HOME") == "" {
			// Scenarios have a home folder of their own; the library lies in the user's cache.
			e.Setenv("XDG_CACHE_HOME", home+"/.cache")
		}
		e.Setenv("VERBATIM_READ_WAIT", "60s") // A busy machine is late, and a scenario rather waits.
		e.Setenv("WORKER_MEMORY", workerMemory)
		e.Setenv("VERBATIM_DATA", e.WorkDir+"/data")
		e.Values[stackKey{}] = &stack{}
		e.Values[sharedKey{}] = common
		if more != nil {
			more(e)
		}
		return nil
	}
	p.Cmds = map[string]func(*testscript.TestScript, bool, []string){
		"up":       up,
		"server":   server,
		"ready":    ready,
		"down":     down,
		"kill9":    kill9,
		"field":    field,
		"until":    until,
		"repeat":   repeat,
		"sha256eq": sha256eq,
		"hidden":   hidden,
	}
	p.RequireExplicitExec = true
	p.RequireUniqueNames = true
	testscript.Run(t, p)
}
