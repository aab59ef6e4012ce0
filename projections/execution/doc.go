// Package execution folds the facts about one execution into the row that people read. It does no I/O.
//
// # A join, not a state machine
//
// Facts come late, twice, out of order, from several producers, and sometimes they contradict each
// other. So a State never asks what came before: every part of it is a union, a maximum, or the smallest
// of what was seen, and the row is worked out from the parts when it is asked for. Any order, duplication
// and batching of the same facts, also with MarshalBinary and Load in between, gives the same Row and the
// same Version.
//
//	fact ──► Seen          which facts were counted: (source, id), as ranges of sequences
//	     ├─► slot          one fact of a kind per attempt; a second, different one is a contradiction
//	     ├─► log           several facts of a kind: signals, read errors, seals
//	     └─► stream        ranges received, first and last bytes, running digest
//
//	Row = outcome (status, reason, exit, error) + ledger (missing, complete) + view (previews)
//
// # Two facts that contradict each other
//
// Both stay in the log and in the archive. The row shows the one with the smallest (source, sequence) and
// names the contradiction in Row.Contradictions. What a process did outweighs what somebody
// expected of it: with a ProcessExited, WaitFailed, StartFailed and RunnerLost do not decide the status. And a runner that
// says more than it had said when it was lost, or is seen again with the attempt, is not lost.
//
// # Two seals
//
// Bytes may come late, when another process holds the pipe after the end; then there is a second seal, which counts
// everything anew (seal.go). Of each stream the one with the most bytes is the row's.
//
// # Bounds
//
// Memory per execution does not grow with the output. Kept are, per stream: the first 64 KiB; the last 64 KiB
// below the highest end seen; the received ranges; a SHA-256 over the received prefix. Chunks that
// arrived before their prefix wait as bytes, at most MaxWaitingBytes per execution; past that the stream's
// digest is not verified (digest match and complete are NULL, never true) until the row is rebuilt from the
// archive in order. In detail kept are the keptAttempts highest attempts. A hostile or broken producer can meet
// the other limits (ranges per set, producers, ids of a foreign form); the row then says so in
// Contradictions, and its counts are lower bounds. What facts say past the limits is folded all the same, and each one that changes the
// state counts in the Version, once: so the row that knows more always takes the place of the other. How many do depends on their order;
// in Kafka, the archive and a file they have the same one.
//
// # What is proven
//
// Row.Complete is true only if every byte below the seal's total is received or elided, the digest
// of the received bytes is the seal's (when the seal has one), nothing is lost, nobody holds the pipe, and no
// byte came in two versions. If all of that holds but for a digest that could not be worked out
// (chunks of different facts overlapped past the first 64 KiB, or too many bytes waited), it is NULL.
//
// The one thing that is not detected everywhere: two chunks with the same source and id and
// different bytes. They break the rule that an id names one fact; only where the bytes are kept (head, tail) is it seen.
package execution
