// Package storetest holds the tests of projections/clickhouse that need an engine. They stand here and not there since
// the projections know nothing of the services, and the embedded engine is one.
package storetest
