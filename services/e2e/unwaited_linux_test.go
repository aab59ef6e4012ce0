package e2e

import (
	"os"
	"syscall"
	"unsafe"

	"verbatim.dev/services/cli"
)

// unwaited is the program with a supervisor whose children leave no exit status: SIGCHLD has SA_NOCLDWAIT (sigaction(2)), as after a library that
// means well, and every wait ends with ECHILD.
func unwaited() {
	if len(os.Args) > 1 && os.Args[1] == "runner" {
		var action struct{ handler, flags, restorer, mask uintptr }
		const noChildWait = 2
		const maskBytes = 8
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGCHLD), 0, uintptr(unsafe.Pointer(&action)), maskBytes, 0, 0)
		action.flags |= noChildWait
		if errno == 0 {
			_, _, errno = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGCHLD), uintptr(unsafe.Pointer(&action)), 0, maskBytes, 0, 0)
		}
		if errno != 0 {
			panic(errno)
		}
	}
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
