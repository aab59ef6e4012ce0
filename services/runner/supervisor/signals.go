package supervisor

import (
	"os"
	"os/signal"
	"syscall"
)

// handleIgnored handles, by doing nothing, the signals that this process was started to ignore: by nohup(1), or in the background of a
// script. execve(2) keeps a signal ignored and sets one that is handled to its default, and what becomes of the processes here
// must not depend on how their runner was started. After stop they are ignored as before.
func handleIgnored() (stop func()) {
	var ignored []os.Signal
	for number := syscall.Signal(1); number < 32; number++ {
		if signal.Ignored(number) {
			ignored = append(ignored, number)
		}
	}
	if len(ignored) == 0 { // Notify would take none for all.
		return func() {}
	}
	nobody := make(chan os.Signal, 1)
	signal.Notify(nobody, ignored...)
	return func() { signal.Stop(nobody) }
}
