package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// release is set when a release is built (-ldflags "-X verbatim.dev/services/cli.release=…").
var release string

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

type versionCommand struct {
	JSON bool `name:"json" help:"Print it as JSON."`
}

// Run is called by kong.
func (c *versionCommand) Run(s *session) error {
	if c.JSON {
		return writeJSON(s.stdout, map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
	}
	_, err := fmt.Fprintf(s.stdout, "verbatim %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
