//go:build !linux

package supervisor

import (
	"context"
	"errors"
	"os"
)

// StateVariable and StateVersion have no meaning here.
const (
	StateVariable = "VERBATIM_SUPERVISOR_STATE"
	StateVersion  = 1
)

var errNoRenewal = errors.New("a supervisor can execute itself anew on Linux only")

func (r *run) renew(context.Context) error { return errNoRenewal }

func (h *Host) restore(f *os.File) error { return errors.Join(errNoRenewal, f.Close()) }
