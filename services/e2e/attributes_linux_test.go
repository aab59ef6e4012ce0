package e2e

import "syscall"

// attributes are those of a stack: a process group of its own, and no life after the test's, however that ends.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
