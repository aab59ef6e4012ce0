package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"

	"verbatim.dev/services/runner/journal"
)

// The files of the runner's key in its data folder. The public part lies beside it, so that a key that went lost is
// noticed and not quietly replaced by one for which nobody has encrypted anything.
const (
	keyFile       = "key"
	recipientFile = "key.pub"
)

// openKey reads the key for which secrets are encrypted, or makes it at the first start. Errors say what to do and show
// nothing of the key.
func openKey(folder string) (*age.X25519Identity, error) {
	path, public := filepath.Join(folder, keyFile), filepath.Join(folder, recipientFile)
	announced, err := os.ReadFile(public)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the runner's public key: %w", err)
	}
	identity, err := readKey(path)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case len(announced) > 0:
		return nil, fmt.Errorf("the runner's key %s is gone, and with it every secret that was encrypted for %s: put it back, or remove %s to make a new one",
			path, bytes.TrimSpace(announced), public)
	default:
		if identity, err = makeKey(path); err != nil {
			return nil, err
		}
	}
	recipient := identity.Recipient().String() + "\n"
	switch {
	case len(announced) == 0:
		if err := journal.WriteFile(public, []byte(recipient)); err != nil {
			return nil, fmt.Errorf("write the runner's public key: %w", err)
		}
	case string(announced) != recipient:
		return nil, fmt.Errorf("the runner's key %s is not the one that was announced, which %s has: put that back, or remove %s to use this one", path, public, public)
	}
	return identity, nil
}

func makeKey(path string) (*age.X25519Identity, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make the runner's key: %w", err)
	}
	text := []byte("# The key of a Verbatim runner. Who has it can read the secrets that were encrypted for it.\n" + identity.String() + "\n")
	defer clear(text)
	if err := journal.WriteFile(path, text); err != nil {
		return nil, fmt.Errorf("write the runner's key: %w", err)
	}
	return identity, nil
}

// readKey reads a key file; fs.ErrNotExist when there is none.
func readKey(path string) (*age.X25519Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the runner's key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at the runner's key: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("the runner's key %s is no file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("the runner's key %s can be read or changed by others (mode %#o): chmod 600 it, and think about whether it is a secret still", path, info.Mode().Perm())
	}
	identities, err := age.ParseIdentities(f)
	if err == nil && len(identities) == 1 {
		if identity, ok := identities[0].(*age.X25519Identity); ok {
			return identity, nil
		}
	}
	// What the parser says may quote the file.
	return nil, fmt.Errorf("the runner's key %s holds no key of the form AGE-SECRET-KEY-1…: put the right file back", path)
}
