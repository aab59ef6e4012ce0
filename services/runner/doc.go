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
// Every attempt that is claimed here ends with an OutputSealed; before it stands exactly one of StartFailed, ProcessExited
// and WaitFailed. Behind it comes only what another process wrote later, with a second OutputSealed (late.go). No failure replaces
// what was seen:
//
//   - wait fails: WaitFailed, and output goes on up to its end;
//   - stdin is not taken whole: StdinWriteFailed, which ends nothing;
//   - a pipe cannot be read, or what it holds cannot be kept: OutputReadFailed with the offset, the rest is read and only
//     counted, so that the process goes on and the seal lists the exact range; the other stream goes on as ever;
//   - a disk is full: the process waits in write(2) until there is room; the reserve lets what is in the log give its room back;
//   - a stream is longer than its limit: head and tail are published, the middle is counted and digested (flow.go);
//   - another process holds a pipe after the end: drained for Config.DrainTime, sealed as still held, and listened to;
//   - the log is away: output waits in the spool, which is bounded, and then the process in write(2). Publishing is tried again until
//     Stop's context ends; what is then not acknowledged is published by the next runner on the same data folder;
//   - a panic in an attempt ends that attempt alone: its group is killed, since nobody watches it any
//     more, WaitFailed says why, and what was captured is published and sealed.
//
// This package is the worker of the two processes that a runner is; package supervisor is the other one, and
// docs/decisions/0006-two-processes.md says why. A worker is killed at any moment and leaves behind all that the next one needs: processes and
// pipes are the supervisor's too, output lies in the spool, and the journal has every fact with its number, before it is published.
//
//	killed …                      the next worker …
//	before the claim              drops what it finds, the message comes again
//	around the commit             asks the broker whose claim it is
//	claimed, before the start     starts the process; the supervisor does that once, whoever asks
//	while the process runs        gets pipes, stdin document and exit from the supervisor, goes on at the end of the spool, and
//	                              publishes again, with the same numbers and bytes, what was not acknowledged
//	after the end                 publishes the rest and seals
//	while it sends a signal       sends it again to who is still there, and says why it ended of who is not
//	listening                     gets the pipes from the supervisor and listens on
//
// None but the first two needs the broker: what was started is looked after while it is away (Runner.Adopt). A claim whose answer is lost
// is asked about, too, without any kill (claim.go).
//
// The claim is committed before the process starts, so an attempt starts at most once. A Prepared that comes again (a producer's
// resend, a rebalance) finds its attempt known, also after a restart, and is only claimed. When the supervisor is gone
// (GoneError), what was observed is published and sealed with WaitFailed.
//
// Ending a process: TERM to the group, the grace, KILL to the group. The first cause stays: a cancel after a
// timeout changes nothing. The rest of a group outlives its leader only when nobody asked for an end:
// then a daemon that the process left behind is its own affair. After a TERM the rest gets the same grace and
// the same KILL. Signals only go out while the leader is not reaped (package process says why).
//
// Packages: supervisor holds the processes (process starts and waits, cgroup bounds), spool keeps and cuts output, mask hides
// secrets in it, journal remembers, outbox numbers and publishes, protocol is what worker and supervisor say.
package runner
