package runner

import (
	"fmt"
	"maps"
	"slices"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/secret"
	"verbatim.dev/services/runner/mask"
	"verbatim.dev/services/runner/process"
)

// Secrets are in clear in three places: in this process's memory while they are decrypted and written, in the masker,
// which must know what it looks for, and in the stdin document, which is memory without a name that goes when the process has taken it. They
// are on no disk, in no fact, no log and no error.

// openSecrets decrypts the secrets, by name. Whoever gets the values wipes them.
func (a *attempt) openSecrets() ([]mask.Secret, error) {
	files := a.spec.GetSecrets()
	if len(files) == 0 {
		return nil, nil
	}
	fail := func(err error) ([]mask.Secret, error) {
		return nil, &process.StartError{Reason: executionv1.StartFailureReason_START_FAILURE_REASON_SECRET, Message: err.Error()}
	}
	// Somebody else than the gateway may have asked.
	if err := secret.CheckFiles(files); err != nil {
		return fail(err)
	}
	var values []mask.Secret
	total := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		value, err := secret.Open(a.runner.key, files[name])
		if total += len(value); err == nil && total > events.MaxSecretBytes {
			clear(value)
			err = secret.ErrSize
		}
		if err != nil {
			wipe(values)
			return fail(fmt.Errorf("secret %s: %w", name, err))
		}
		values = append(values, mask.Secret{Name: name, Value: value})
	}
	return values, nil
}

// learnSecrets sets the masker, before anything is read that the process may have written.
func (a *attempt) learnSecrets() error {
	values, err := a.openSecrets()
	if err != nil || len(values) == 0 {
		return err
	}
	defer wipe(values)
	a.masker, a.unmasked, err = mask.New(values)
	if err != nil {
		return &process.StartError{Reason: executionv1.StartFailureReason_START_FAILURE_REASON_SECRET, Message: "the secrets cannot be masked: " + err.Error()}
	}
	if len(a.unmasked) > 0 {
		a.log.Warn("secrets are too short to be masked in the output", "secrets", a.unmasked)
	}
	return nil
}

// secretDocument is what a process with secrets gets on its standard input: one line of JSON.
func secretDocument(values []mask.Secret) []byte {
	const head, tail = `{"parameters":{},"secrets":{`, "}}\n"
	size := len(head) + len(tail)
	for _, v := range values {
		size += len(v.Name) + 6*len(v.Value) + len(`"":"",`)
	}
	// One block: appending must not leave copies behind.
	line := append(make([]byte, 0, size), head...)
	for i, v := range values {
		if i > 0 {
			line = append(line, ',')
		}
		line = append(append(append(line, '"'), v.Name...), `":"`...)
		line = append(mask.AppendJSON(line, v.Value), '"')
	}
	return append(line, tail...)
}

// wipe overwrites values.
func wipe(values []mask.Secret) {
	for _, v := range values {
		clear(v.Value)
	}
}
