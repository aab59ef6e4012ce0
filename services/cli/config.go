package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// configFile is the file that --config names: one JSON object, a member per flag, by the flag's name. One file serves
// every service: a member that this command has no flag for must be a flag of another one.
type configFile map[string]any

// loadConfig is a kong.ConfigurationLoader.
func loadConfig(r io.Reader) (kong.Resolver, error) {
	decoder := json.NewDecoder(r)
	decoder.UseNumber()
	var c configFile
	if err := decoder.Decode(&c); err != nil {
		return nil, fmt.Errorf("the configuration file is no JSON object: %w", err)
	}
	return c, nil
}

// Validate implements kong.Resolver: a misspelt name must not be an ignored one.
func (c configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var learn func(n *kong.Node)
	learn = func(n *kong.Node) {
		for _, f := range n.Flags {
			known[f.Name] = true
		}
		for _, child := range n.Children {
			learn(child)
		}
	}
	learn(app.Node)
	var unknown []string
	for name := range c {
		if !known[name] || name == "config" || name == "help" {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("the configuration file sets what is no flag: %s", strings.Join(unknown, ", "))
	}
	return nil
}

// Resolve implements kong.Resolver.
func (c configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	switch v := c[flag.Name].(type) {
	case nil:
		return nil, nil
	case []any:
		parts := make([]string, len(v))
		for i, part := range v {
			parts[i] = fmt.Sprint(part)
		}
		return strings.Join(parts, ","), nil
	case map[string]any:
		return nil, fmt.Errorf("%s in the configuration file is an object; a string, number, boolean or list is wanted", flag.Name)
	default:
		return fmt.Sprint(v), nil
	}
}
