//go:build !linux

package cli

import "golang.org/x/sys/unix"

// keepPrivate keeps this process's memory, which holds secrets, from core files.
func keepPrivate() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }
