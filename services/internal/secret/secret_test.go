package secret_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"filippo.io/age"

	"verbatim.dev/events"
	"verbatim.dev/services/internal/secret"
)

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func seal(t *testing.T, value []byte, to ...*age.X25519Identity) []byte {
	t.Helper()
	var recipients []string
	for _, i := range to {
		recipients = append(recipients, i.Recipient().String())
	}
	file, err := secret.Seal(recipients, value)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestEveryRunnerItIsForOpensASecretAndNobodyElse(t *testing.T) {
	t.Parallel()
	a, b, stranger := identity(t), identity(t), identity(t)
	for _, value := range []string{"x", "correct horse\nbattery staple\n", strings.Repeat("y", events.MaxSecretBytes)} {
		file := seal(t, []byte(value), a, b)
		if bytes.Contains(file, []byte("horse")) {
			t.Fatal("the value is in the file")
		}
		for _, i := range []*age.X25519Identity{a, b} {
			if got, err := secret.Open(i, file); err != nil || string(got) != value {
				t.Fatalf("%d bytes, %v, want %d bytes", len(got), err, len(value))
			}
		}
		if _, err := secret.Open(stranger, file); !errors.Is(err, secret.ErrNotForUs) {
			t.Fatalf("another key: %v", err)
		}
	}
}

func TestWhatIsNoWholeSecretIsRefusedAndNotShown(t *testing.T) {
	t.Parallel()
	me := identity(t)
	good := seal(t, []byte("hunter2-hunter2"), me)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"cut":       {good[:len(good)-1], secret.ErrBroken},
		"header":    {good[:40], secret.ErrBroken},
		"changed":   {flipped, secret.ErrBroken},
		"in clear":  {[]byte("hunter2-hunter2"), secret.ErrBroken},
		"nothing":   {nil, secret.ErrBroken},
		"empty":     {seal(t, nil, me), secret.ErrSize},
		"too large": {seal(t, make([]byte, events.MaxSecretBytes+1), me), secret.ErrSize},
		"no text":   {seal(t, []byte("hunter2\xff"), me), secret.ErrText},
	} {
		value, err := secret.Open(me, c.file)
		if !errors.Is(err, c.want) || value != nil {
			t.Errorf("%s: %d bytes, %v, want %v", name, len(value), err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the value: %v", name, err)
		}
	}
}

func TestARequestsSecretsAreCheckedWithoutShowingThem(t *testing.T) {
	t.Parallel()
	file := seal(t, []byte("hunter2-hunter2"), identity(t))
	if err := secret.CheckFiles(map[string][]byte{"TOKEN": file, "_a9": file}); err != nil {
		t.Fatal(err)
	}
	many := map[string][]byte{}
	for i := range events.MaxSecrets + 1 {
		many["S"+strings.Repeat("x", i)] = file
	}
	heavy := map[string][]byte{}
	for _, name := range strings.Split("abcde", "") {
		heavy[name] = append(bytes.Clone(file), make([]byte, events.MaxSecretFileBytes-len(file))...)
	}
	for says, files := range map[string]map[string][]byte{
		"no age file":        {"TOKEN": []byte("hunter2-hunter2")},
		"name":               {"hunter2-hunter2": file},
		"the limit is 64":    many,
		"the limit is 26214": {"A": append(bytes.Clone(file), make([]byte, events.MaxSecretFileBytes)...)},
		"the limit is 10485": heavy,
	} {
		err := secret.CheckFiles(files)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the value is shown: %v", err)
		}
	}
}
