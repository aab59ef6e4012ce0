// Package process starts one process, waits for its end and signals its group. It knows nothing of events,
// topics or output; it hands out the ends of the pipes and the facts about the end.
//
// Why not os/exec:
//
//   - exec.Cmd copies output in goroutines of its own and Wait closes the pipes, so bytes can be cut off
//     (golang/go#69060). Here the caller owns the read ends, and nothing but the caller closes them.
//   - exec.Cmd reaps as soon as the process ended. From then on its number may belong to a stranger, and a
//     signal sent a moment later kills the stranger. Here the ended process stays a zombie until
//     Release: its number, and with it the group's number, cannot be given away, so the rest of the group
//     can still be signalled while output is drained.
//   - exec.Cmd looks a program up in the parent's PATH and directory. Here it is looked up as the child would do it.
//
// The process gets its own session (setsid(2)) and with it its own process group, whose number is its own: a
// signal to the group reaches it and its descendants, and no signal meant for the runner (Ctrl-C, a closed
// terminal) reaches it. PR_SET_PDEATHSIG is left out on purpose. It fires when the *thread* that forked ends
// (prctl(2)), and Go ends threads as it likes; and a process must outlive the death of the runner's
// worker, since what it does is worth more than the worker.
//
// Waiting costs no thread where the kernel has pidfds (Linux 5.3): the runtime's poller watches them.
package process
