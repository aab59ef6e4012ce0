// Package replay rebuilds rows from facts: out of the archive, the log or a file, into a shadow table beside the live one.
//
//	source ──► filter ──► fold (projections/execution) ──► shadow table ──► position saved ──► …
//
// The fold is a join, so it does not matter where the facts come from, in which order, or how often one comes. A replay that
// was stopped, or killed, goes on from the position that was saved last: what comes twice changes nothing.
//
// Memory is bounded: states of executions that have not been heard of for a while are in the shadow table only. From a source that tells
// one execution after the other no state is needed any more when the next execution begins, and none is loaded.
package replay
