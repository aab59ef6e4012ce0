package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/services/client"
	"verbatim.dev/services/gateway/api"
	"verbatim.dev/services/internal/secret"
	"verbatim.dev/services/runner/mask"
)

// runnerPatience is how long a runner is waited for: one that has just been started is heard of in a moment.
const runnerPatience = 5 * time.Second

// readSecrets reads what --secret names. Its errors name secrets by their names alone: whatever else was given may be a value that was
// put in the wrong place.
func (c *runCommand) readSecrets(stderr io.Writer) (map[string][]byte, error) {
	if len(c.Secret) == 0 {
		return nil, nil
	}
	if c.Stdin != "" {
		return nil, usageError{errors.New("--secret and --stdin exclude each other: the process gets its secrets on its standard input")}
	}
	if len(c.Secret) > events.MaxSecrets {
		return nil, usageError{fmt.Errorf("--secret: %d secrets, the limit is %d", len(c.Secret), events.MaxSecrets)}
	}
	keepPrivate()
	values := make(map[string][]byte, len(c.Secret))
	total := 0
	for i, given := range c.Secret {
		name, source, found := strings.Cut(given, "=")
		if !found || secret.CheckName(name) != nil {
			return nil, usageError{fmt.Errorf("--secret number %d is none of NAME=env:VAR and NAME=file:PATH (%w)", i+1, secret.ErrName)}
		}
		if _, twice := values[name]; twice {
			return nil, usageError{fmt.Errorf("--secret %s is given twice", name)}
		}
		value, err := readSecret(source)
		if err == nil {
			err = secret.CheckValue(value)
		}
		if total += len(value); err == nil && total > events.MaxSecretBytes {
			err = secret.ErrSize
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("--secret %s: %w", name, err)}
		}
		if mask.TooShort(value) {
			fmt.Fprintf(stderr, "verbatim run: secret %s has fewer than %d bytes and is not masked in the output\n", name, mask.MinBytes)
		}
		values[name] = value
	}
	return values, nil
}

func readSecret(source string) ([]byte, error) {
	kind, where, _ := strings.Cut(source, ":")
	switch kind {
	case "env":
		value, ok := os.LookupEnv(where)
		if !ok || where == "" {
			return nil, errors.New("the environment variable that env: names is not set")
		}
		return []byte(value), nil
	case "file":
		f, err := os.Open(where)
		if err != nil {
			return nil, fmt.Errorf("open the file that file: names: %w", cause(err))
		}
		defer f.Close()
		value, err := io.ReadAll(io.LimitReader(f, events.MaxSecretBytes+1))
		if err != nil {
			return nil, fmt.Errorf("read the file that file: names: %w", cause(err))
		}
		return value, nil
	default:
		return nil, errors.New("a value is never given itself, others could see it: say env:VAR or file:PATH after the name")
	}
}

// cause is an error without the path that it is about.
func cause(err error) error {
	if at := (*fs.PathError)(nil); errors.As(err, &at) {
		return at.Err
	}
	return err
}

// sealSecrets puts the secrets into the request, encrypted for every runner that lives, and wipes them.
func sealSecrets(ctx context.Context, c *client.Client, values map[string][]byte, r *api.SubmitRequest) error {
	if len(values) == 0 {
		return nil
	}
	recipients, err := recipients(ctx, c)
	if err != nil {
		return err
	}
	r.Secrets = make(map[string][]byte, len(values))
	for name, value := range values {
		if r.Secrets[name], err = secret.Seal(recipients, value); err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		clear(value)
	}
	return nil
}

// recipients are the keys of the runners that live.
func recipients(ctx context.Context, c *client.Client) ([]string, error) {
	for began := time.Now(); ; {
		runners, err := c.Runners(ctx)
		if err != nil {
			return nil, err
		}
		var keys []string
		for _, r := range runners {
			if r.Lives() && r.AgeRecipient != "" {
				keys = append(keys, r.AgeRecipient)
			}
		}
		slices.Sort(keys)
		if keys = slices.Compact(keys); len(keys) > 0 {
			return keys, nil
		}
		if time.Since(began) > runnerPatience {
			return nil, errors.New("no runner lives that secrets could be encrypted for: start one (\"verbatim runners\" lists those that are known)")
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
