// Package clickhouse keeps rows and the archive of events in ClickHouse. Besides services/embedded it is the only place
// that knows the driver; server and embedded engine are reached by the same code, by DSN (http:// or clickhouse://).
//
// # Tables
//
// executions has one current row per execution (projections/execution), events every accepted event with
// its payload; migrations/ defines and explains them. Both are ReplacingMergeTrees whose sort key names a
// thing for ever, so inserting twice is inserting once, and a crash between insert and commit of the
// Kafka offset costs work, never truth. Partition is the day of the execution's id, worked out here: it never changes
// either, which matters since parts of different partitions never merge.
//
// # Reading
//
// Everything about one execution is read by its day and id, a prefix of the key. Before a merge there can
// be several versions of a row and several copies of an event: rows are read with FINAL on that prefix,
// copies of events are dropped while reading, which keeps memory bounded however many there are. Long
// results are read in pages, by ranges of offsets; a minmax index per granule finds a page without reading
// the rest.
//
// # Failures
//
// Nothing is retried here but migrations. ClickHouse away is an error of the call; whoever feeds the store pauses and
// calls again with the same batch.
package clickhouse
