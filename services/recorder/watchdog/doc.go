// Package watchdog closes what nobody else will close: executions whose runner is gone, that nobody prepared or started, and that ended and
// were never sealed. It also begins the attempts that a retry policy asks for. It is a part of the recorder.
//
// # Who acts
//
// The recorder that owns a partition of the log of facts acts on its executions. What it says has ids that follow from the log alone
// (<execution>/<attempt>/watchdog/<number>), so two recorders that act in the same moment of a rebalance say the same fact.
//
// # What it knows
//
//	log of facts ──► Observe ──► table: stage, runner and deadline of each open execution (about 100 bytes each)
//	rows ──────────► scan ─────►   "    after a start, a rebalance, and every ScanInterval; older than Horizon only after the first two
//	heartbeats ────► Beat ─────► runners: when heard, what they have
//	                                │
//	                          pass, every Sweep: what is overdue? ──► its story, from the archive ──► judge ──► publish
//
// The table only says where to look. Whatever it says, nothing is published but what the facts in the archive say, after everything that
// was in the partition at a moment before was archived. So a table that is late, lost, or wrong delays an answer and never makes a
// wrong one.
//
// # Silence
//
// Silence is measured by this process's monotonic clock between heartbeats that it read itself, so no clock of a runner or of
// the broker counts. It only counts while the watchdog could have heard something: it has read all heartbeats up to
// the end of their topic, and the broker answered in every pass. After a start, an outage of the broker, or a pause of this process, it begins
// anew for everybody. A fact of a runner is as good as a heartbeat.
//
//	prepared ──► running ──► exited ──► (sealed: forgotten, or a retry is decided)
//	   │            │  ▲        │
//	   │            ▼  │        ▼
//	   │           lost ◄───────┘      silent, or it lives and does not have the attempt
//	   ▼
//	StartFailed, expired               later than Prepared.start_by, which runners keep as well
//
// Deadlines that somebody else keeps too (a runner starts nothing after start_by, a preparer prepares nothing after its own) are
// given Margin, so that clocks may differ by that much.
package watchdog
