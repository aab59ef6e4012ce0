package e2e

import "syscall"

// attributes are those of a stack: a process group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
