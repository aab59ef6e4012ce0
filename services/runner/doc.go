// Package runner runs prepared executions and turns everything that it sees of them into facts.
//
// The life of an attempt:
//
//	Prepared ─► admitted ─► has a slot ─► claimed ─┬─► StartFailed ───────────────────────────► OutputSealed
//	              │ waits       │                  └─► ProcessStarted ─► running ─► ended ─► drained ─┘
//	              └─ duplicate  └─ claim refused: not ours                 │   │
//	                                                        OutputChunk … ─┤   └ ProcessExited | WaitFailed
//	                                                  TerminationStarted … ┘
//
// Every attempt that is claimed here ends with exactly one OutputSealed, which is its last fact; before it
// stands exactly one of StartFailed, ProcessExited and WaitFailed. No failure replaces what was seen:
//
//   - wait fails: WaitFailed, and output goes on up to its end;
//   - stdin is not taken whole: StdinWriteFailed, which ends nothing;
//   - a pipe cannot be read, or what it holds cannot be kept: OutputReadFailed with the offset, the rest is read and only
//     counted, so that the process goes on and the seal lists the exact range; the other stream goes on as ever;
//   - a disk is full: the process waits in write(2) until there is room;
//   - a stream is longer than its limit: head and tail are published, the middle is counted and digested (flow.go);
//   - another process holds a pipe after the end: drained for Config.DrainTime, sealed as still held;
//   - the log is away: facts wait in a bounded outbox, output in a bounded spool, then the process waits in
//     write(2). Publishing is tried again until Stop's context ends, and what is then not acknowledged is logged with its numbers;
//   - a panic in an attempt ends that attempt alone: its group is killed, since nobody watches it any
//     more, WaitFailed says why, and what was captured is published and sealed.
//
// The claim is committed before the process starts, so an attempt starts at most once. A Prepared that comes
// again (a producer's resend, a rebalance) finds its attempt known and is only claimed. What was here before this process was killed
// is in each attempt's journal.
//
// Ending a process: TERM to the group, the grace, KILL to the group. The first cause stays: a cancel after a
// timeout changes nothing. The rest of a group outlives its leader only when nobody asked for an end:
// then a daemon that the process left behind is its own affair. After a TERM the rest gets the same grace and
// the same KILL. Signals only go out while the leader is not reaped (package process says why).
//
// Packages: supervisor has the processes, process starts and waits, spool moves output to disk and cuts it, mask hides
// secrets in it, outbox numbers and publishes, journal is what the next worker reads.
package runner
