// Package clickhouse runs a ClickHouse inside this process and serves it on loopback.
package clickhouse
