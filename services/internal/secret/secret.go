// Package secret takes values to a process so that nobody on the way can read them.
//
//	verbatim run ── Seal ──► gateway ──► Kafka ──► preparer ──► Kafka ──► runner ── Open ──► the process's stdin
//	  in clear       └──────────────── an age file for every secret ───────────────┘          in clear
//
// An age file (https://age-encryption.org/v1) is encrypted for every runner that lives when the request is made, so that
// any of them can take the work. One that joins later, or has made itself a new key, cannot: the execution then fails with
// that reason, and nothing is shown.
//
// Neither this package's errors nor those of whoever uses it hold a value, an age file, or a text that was given in the place
// of a name and may be a value.
package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"

	"filippo.io/age"

	"verbatim.dev/events"
)

// namePattern is what an environment variable may be called (POSIX.1-2024, section 8.1), and lower-case letters.
var namePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// magic begins every age file (https://c2sp.org/age, section Header).
const magic = "age-encryption.org/v1\n"

// ErrName says what a name looks like.
var ErrName = errors.New("a secret's name has 1 to 128 letters, digits and underscores, and does not begin with a digit")

// ErrNotForUs says that a secret was not encrypted for this key.
var ErrNotForUs = errors.New("it is not encrypted for this runner's key")

// ErrBroken says that what came is no whole age file.
var ErrBroken = errors.New("it cannot be decrypted: it is damaged, or no age file")

// ErrText says that a value cannot stand in a JSON document.
var ErrText = errors.New("its value is not UTF-8: encode it, for instance as base64, and decode it in the process")

// ErrSize says that a value is empty or that there is too much.
var ErrSize = fmt.Errorf("secrets may have 1 to %d bytes, all of one execution together", events.MaxSecretBytes)

// CheckName returns ErrName for what is no name.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return ErrName
	}
	return nil
}

// CheckValue reports why a value cannot be a secret.
func CheckValue(value []byte) error {
	switch {
	case len(value) == 0 || len(value) > events.MaxSecretBytes:
		return ErrSize
	case !utf8.Valid(value):
		return ErrText
	}
	return nil
}

// CheckRecipient reports whether a text is the public part of a key.
func CheckRecipient(recipient string) error {
	if _, err := age.ParseX25519Recipient(recipient); err != nil {
		return errors.New("this is no age recipient of the form age1…")
	}
	return nil
}

// Seal encrypts a value for each of the recipients.
func Seal(recipients []string, value []byte) ([]byte, error) {
	var to []age.Recipient
	for _, r := range recipients {
		recipient, err := age.ParseX25519Recipient(r)
		if err != nil {
			return nil, errors.New("a runner announces what is no age recipient")
		}
		to = append(to, recipient)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err == nil {
		_, err = w.Write(value)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt secret: %w", err)
	}
	return out.Bytes(), nil
}

// CheckFiles reports everything that is wrong with the secrets of a request, by name, without decrypting them. What is no age
// file is refused here, before it lies anywhere: it may be a value in clear.
func CheckFiles(files map[string][]byte) error {
	var errs []error
	if len(files) > events.MaxSecrets {
		errs = append(errs, fmt.Errorf("%d secrets, the limit is %d", len(files), events.MaxSecrets))
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		file := files[name]
		total += len(file)
		if err := CheckName(name); err != nil {
			errs = append(errs, err)
			continue
		}
		switch {
		case !bytes.HasPrefix(file, []byte(magic)):
			errs = append(errs, fmt.Errorf("secret %s is no age file: it must be encrypted for the runners' keys", name))
		case len(file) > events.MaxSecretFileBytes:
			errs = append(errs, fmt.Errorf("secret %s has %d bytes, encrypted; the limit is %d", name, len(file), events.MaxSecretFileBytes))
		}
	}
	if total > events.MaxSecretFilesBytes {
		errs = append(errs, fmt.Errorf("the secrets have %d bytes, encrypted; the limit is %d", total, events.MaxSecretFilesBytes))
	}
	return errors.Join(errs...)
}

// Open decrypts a secret. The error is ErrNotForUs, ErrBroken, ErrText or ErrSize.
func Open(identity age.Identity, file []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(file), identity)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, ErrNotForUs
	} else if err != nil {
		return nil, ErrBroken
	}
	// One block: a value that grows while it is read would leave copies behind.
	buffer := make([]byte, events.MaxSecretBytes+1)
	n, err := io.ReadFull(r, buffer)
	value := buffer[:n:n]
	switch {
	case err == nil:
		err = ErrSize
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		err = ErrBroken
	default:
		err = CheckValue(value)
	}
	if err != nil {
		clear(value)
		return nil, err
	}
	return value, nil
}
