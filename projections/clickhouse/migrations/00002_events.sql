-- The archive: every accepted event with its payload as it travelled. It is what replay reads once Kafka's retention
-- has passed, and what output and event lists are read from. Copies of an event have one key and are merged; the copy with the
-- smallest Kafka offset stays.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS events
(
    created_day Date COMMENT 'Day (UTC) in which the execution id, a UUIDv7, was made',
    execution_id String,
    attempt UInt32 COMMENT 'From 1; 0 belongs to the execution itself',
    source LowCardinality(String) COMMENT 'Producer, a URI reference',
    sequence UInt64 COMMENT 'Number within attempt and producer, from 1' CODEC(Delta, ZSTD(1)),
    id String COMMENT 'With source it names the event' CODEC(ZSTD(1)),
    type LowCardinality(String) COMMENT 'CloudEvents type',
    time Nullable(DateTime64(9, 'UTC')) COMMENT 'When it happened, by the producer''s clock',
    received_at DateTime64(9, 'UTC') COMMENT 'Time of the Kafka record; 1970-01-01 when it is not usable' CODEC(DoubleDelta, ZSTD(1)),
    topic LowCardinality(String),
    kafka_partition Int32 CODEC(ZSTD(1)),
    kafka_offset Int64 CODEC(Delta, ZSTD(1)),
    earliest UInt64 COMMENT 'Greatest for the smallest Kafka offset: a merge keeps that copy' CODEC(Delta, ZSTD(1)),
    content_type LowCardinality(String) COMMENT 'Encoding of payload',
    traceparent String COMMENT 'W3C trace context, or empty' CODEC(ZSTD(1)),
    headers Array(Tuple(name String, value String)) COMMENT 'Headers of the Kafka record' CODEC(ZSTD(1)),
    payload String COMMENT 'Payload as it travelled' CODEC(ZSTD(3)),
    payload_bytes UInt32 COMMENT 'Length of payload' CODEC(ZSTD(1)),
    stream LowCardinality(String) COMMENT 'OutputChunk: stdout or stderr; else empty',
    output_offset UInt64 COMMENT 'OutputChunk: position of the first byte in its stream' CODEC(Delta, ZSTD(1)),
    output_length UInt32 COMMENT 'OutputChunk: number of bytes' CODEC(ZSTD(1)),
    INDEX by_output_offset output_offset TYPE minmax GRANULARITY 1,
    INDEX by_kafka_offset kafka_offset TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(earliest)
PARTITION BY created_day
ORDER BY (execution_id, attempt, source, sequence, id)
SETTINGS index_granularity = 2048
COMMENT 'Archive of events';

-- +goose Down
DROP TABLE IF EXISTS events;
