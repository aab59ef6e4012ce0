-- One row per execution, folded from its facts (projections/execution). Replaced by the row with the greater
-- version; key and partition come from the execution's id alone and never change. A row can be thrown away: it is rebuilt
-- from the events.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS executions ON CLUSTER 'verbatim'
(
    created_day Date COMMENT 'Day (UTC) in which the execution id, a UUIDv7, was made',
    execution_id String COMMENT 'Id of the execution',
    status LowCardinality(String) COMMENT 'requested, prepared, running; at the end succeeded, failed, timeout, cancelled, lost',
    succeeded Nullable(Bool) COMMENT 'NULL before the end and when the runner was lost',
    exit_code Nullable(Int32) COMMENT 'As given to exit(2); NULL when killed by a signal or not known',
    signal LowCardinality(Nullable(String)) COMMENT 'Signal that killed the process, without SIG',
    error Nullable(String) COMMENT 'One text for people; NULL when the execution succeeded or has not ended',
    error_source LowCardinality(Nullable(String)) COMMENT 'Where error is from: wait, stdin, stderr, exit, signal, timeout, prepare, start, runner',
    stdout Nullable(String) COMMENT 'First and last 64 KiB of stdout as valid UTF-8' CODEC(ZSTD(3)),
    stderr Nullable(String) COMMENT 'First and last 64 KiB of stderr as valid UTF-8' CODEC(ZSTD(3)),
    stdout_bytes Nullable(UInt64) COMMENT 'Size of stdout: the seal''s total, before the seal the highest end seen',
    stderr_bytes Nullable(UInt64) COMMENT 'Size of stderr, as stdout_bytes',
    stdout_truncated Nullable(Bool) COMMENT 'Whether the column stdout does not show everything',
    stdout_bytes_truncated Nullable(UInt64) COMMENT 'Bytes that the column stdout does not show',
    stderr_truncated Nullable(Bool) COMMENT 'Whether the column stderr does not show everything',
    stderr_bytes_truncated Nullable(UInt64) COMMENT 'Bytes that the column stderr does not show',
    stdout_log Nullable(String) COMMENT 'URI of the recorded file',
    stderr_log Nullable(String) COMMENT 'URI of the recorded file',
    complete Nullable(Bool) COMMENT 'Whether all output is proven to be there; NULL until sealed and when it can neither be proven nor refuted',
    missing Array(Tuple(stream LowCardinality(String), start UInt64, end UInt64)) COMMENT 'Ranges [start, end) that should be there and are not',
    requested_at Nullable(DateTime64(9, 'UTC')),
    started_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the kernel started the process',
    ended_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the process ended, or the attempt failed without one',
    attempt Nullable(UInt32) COMMENT 'The latest attempt; the row is about it',
    runner LowCardinality(Nullable(String)) COMMENT 'Id of the runner',
    labels Map(String, String),
    reason LowCardinality(Nullable(String)) COMMENT 'Word for an end that was no success: exit_code, signal, timeout, cancel, command_not_found, …',
    action LowCardinality(Nullable(String)) COMMENT 'Name of the action, NULL for a command',
    command Array(String) COMMENT 'Program and arguments',
    directory Nullable(String) COMMENT 'Working directory',
    requested_by Nullable(String),
    prepared_at Nullable(DateTime64(9, 'UTC')),
    duration_ms Nullable(Int64) COMMENT 'From started_at to ended_at',
    sealed Bool COMMENT 'Whether the totals of the output are known',
    host LowCardinality(Nullable(String)),
    pid Nullable(Int64),
    core_dumped Nullable(Bool),
    out_of_memory Nullable(Bool) COMMENT 'Whether there is evidence of the out-of-memory killer',
    user_ms Nullable(Int64) COMMENT 'CPU time in user mode',
    system_ms Nullable(Int64) COMMENT 'CPU time in the kernel',
    max_resident_bytes Nullable(UInt64),
    timeout_ms Nullable(Int64) COMMENT 'How long the process was allowed to run',
    stdin_accepted_bytes Nullable(UInt64) COMMENT 'Bytes of stdin that the process''s pipe took; only when not all were taken',
    stdin_offered_bytes Nullable(UInt64) COMMENT 'Bytes of stdin there were; only when not all were taken',
    terminated Bool COMMENT 'Whether Verbatim began to end the process',
    termination_cause LowCardinality(Nullable(String)) COMMENT 'timeout, cancel, runner_shutdown',
    termination_requested_by Nullable(String),
    termination_message Nullable(String),
    termination_started_at Nullable(DateTime64(9, 'UTC')),
    termination_signals Array(Tuple(signal LowCardinality(String), sent_at Nullable(DateTime64(9, 'UTC')))) COMMENT 'Signals sent to the process group, in order',
    stdout_sha256 Nullable(String) COMMENT 'SHA-256 of the captured bytes in hex, as the seal states it',
    stderr_sha256 Nullable(String) COMMENT 'SHA-256 of the captured bytes in hex, as the seal states it',
    stdout_digest_match Nullable(Bool) COMMENT 'Whether the received bytes have the digest that the seal states',
    stderr_digest_match Nullable(Bool) COMMENT 'Whether the received bytes have the digest that the seal states',
    stdout_pipe_still_held Nullable(Bool) COMMENT 'Whether another process held the pipe when it was sealed',
    stderr_pipe_still_held Nullable(Bool) COMMENT 'Whether another process held the pipe when it was sealed',
    elided Array(Tuple(stream LowCardinality(String), start UInt64, end UInt64)) COMMENT 'Ranges [start, end) left out on purpose',
    output_errors Array(String) COMMENT 'Streams that could not be read further',
    attempts UInt64 COMMENT 'Attempts met',
    contradictions Array(String) COMMENT 'Facts that cannot all be true',
    facts Map(String, UInt64) COMMENT 'Number of facts by event name',
    unknown_facts UInt64 COMMENT 'Facts skipped: type or stream not known to the projector',
    version UInt64 COMMENT 'Number of distinct facts folded',
    state String COMMENT 'What the projector needs to go on folding; not for reading' CODEC(ZSTD(3))
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', version)
PARTITION BY created_day
ORDER BY (created_day, execution_id)
SETTINGS index_granularity = 1024
COMMENT 'Executions. Read with FINAL: between merges there are older versions of a row';

-- +goose Down
DROP TABLE IF EXISTS executions ON CLUSTER 'verbatim';
-- The archive: every accepted event with its payload as it travelled. It is what replay reads once Kafka's retention
-- has passed, and what output and event lists are read from. Copies of an event have one key and are merged; the copy with the
-- smallest Kafka offset stays.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS events ON CLUSTER 'verbatim'
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
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', earliest)
PARTITION BY created_day
ORDER BY (execution_id, attempt, source, sequence, id)
SETTINGS index_granularity = 2048
COMMENT 'Archive of events';

-- +goose Down
DROP TABLE IF EXISTS events ON CLUSTER 'verbatim';
-- How much of the output was masked because it was a secret.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions ON CLUSTER 'verbatim'
    ADD COLUMN IF NOT EXISTS stdout_masked_ranges Nullable(UInt64) COMMENT 'Runs of bytes that were masked as secrets; NULL until sealed' AFTER elided,
    ADD COLUMN IF NOT EXISTS stderr_masked_ranges Nullable(UInt64) COMMENT 'Runs of bytes that were masked as secrets; NULL until sealed' AFTER stdout_masked_ranges;

-- +goose Down
ALTER TABLE executions ON CLUSTER 'verbatim' DROP COLUMN IF EXISTS stdout_masked_ranges, DROP COLUMN IF EXISTS stderr_masked_ranges;
-- How far each replay is, by the table it rebuilds rows in: so a replay that was stopped goes on.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS replays ON CLUSTER 'verbatim'
(
    shadow String COMMENT 'Table the rows are rebuilt in',
    position String COMMENT 'What is replayed and up to where, as JSON',
    saved_at DateTime64(9, 'UTC') COMMENT 'The latest counts'
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', saved_at)
ORDER BY shadow
COMMENT 'Replays of events into shadow tables';

-- +goose Down
DROP TABLE IF EXISTS replays ON CLUSTER 'verbatim';
-- Flat tables for analysts, each with its columns explained ("DESCRIBE TABLE output_lines"). They are views: nothing is
-- stored twice, and a condition on execution_id or day reads that part only.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE events ON CLUSTER 'verbatim' ADD COLUMN IF NOT EXISTS output String
    ALIAS multiIf(stream = '', '', content_type = 'application/json', base64Decode(JSONExtractString(payload, 'data')), substring(payload, payload_bytes - output_length + 1))
    COMMENT 'OutputChunk: the bytes of output; else empty' AFTER output_length;

ALTER TABLE events ON CLUSTER 'verbatim' ADD INDEX IF NOT EXISTS by_word
    lower(multiIf(stream = '', '', content_type = 'application/json', base64Decode(JSONExtractString(payload, 'data')), substring(payload, payload_bytes - output_length + 1)))
    TYPE text(tokenizer = 'splitByNonAlpha');

CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

CREATE OR REPLACE VIEW output_lines ON CLUSTER 'verbatim'
(
    execution_id String COMMENT 'Id of the execution: always give one, or a day of created_day',
    created_day Date COMMENT 'Day (UTC) in which the execution id was made',
    attempt UInt32 COMMENT 'From 1',
    stream LowCardinality(String) COMMENT 'stdout or stderr',
    line_number UInt64 COMMENT 'From 1, of what is archived of the stream',
    offset UInt64 COMMENT 'Position of the line among the archived bytes of the stream, from 0',
    time Nullable(DateTime64(9, 'UTC')) COMMENT 'When the chunk that the line begins in was captured',
    line String COMMENT 'The line without its end, as valid UTF-8'
)
AS WITH
    splitByChar('\n', arrayStringConcat(arrayMap(c -> c.3, chunks))) AS pieces,
    if(pieces[-1] = '', arrayPopBack(pieces), pieces) AS texts,
    arrayMap((end, text) -> end - length(text) - 1, arrayCumSum(t -> length(t) + 1, texts), texts) AS begins,
    arrayCumSum(c -> length(c.3), chunks) AS ends
SELECT execution_id, created_day, attempt, stream,
    (arrayJoin(arrayZip(arrayEnumerate(texts), begins, texts)) AS item).1 AS line_number,
    toUInt64(item.2) AS offset,
    (chunks[arrayFirstIndex(e -> e > item.2, ends)]).2 AS time,
    toValidUTF8(item.3) AS line
FROM (
    SELECT execution_id, created_day, attempt, stream, arraySort(groupUniqArray((output_offset, time, output))) AS chunks
    FROM events
    WHERE stream != ''
    GROUP BY execution_id, created_day, attempt, stream
)
COMMENT 'Output as lines of text with time and stream';

CREATE OR REPLACE VIEW attempts ON CLUSTER 'verbatim'
(
    execution_id String,
    created_day Date COMMENT 'Day (UTC) in which the execution id was made',
    attempt UInt32 COMMENT 'From 1',
    runner String COMMENT 'Id of the runner that had it, empty when none did',
    prepared_at Nullable(DateTime64(9, 'UTC')),
    started_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When ProcessStarted happened',
    ended_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the process ended, or could not be started or waited for',
    end_event LowCardinality(String) COMMENT 'ProcessExited, WaitFailed, StartFailed, PreparationFailed, RunnerLost, or empty while there is none',
    sealed Bool COMMENT 'Whether its output is sealed',
    stdout_bytes UInt64 COMMENT 'Highest end of an archived chunk',
    stderr_bytes UInt64 COMMENT 'Highest end of an archived chunk',
    facts UInt64 COMMENT 'Facts archived of it'
)
AS WITH splitByChar('.', type)[4] AS name
SELECT execution_id, created_day, attempt,
    anyIf(substring(source, 18), startsWith(source, '/verbatim/runner/')) AS runner,
    minIf(time, name = 'Prepared') AS prepared_at,
    minIf(time, name = 'ProcessStarted') AS started_at,
    minIf(time, name IN ('ProcessExited', 'WaitFailed', 'StartFailed', 'PreparationFailed', 'RunnerLost')) AS ended_at,
    argMinIf(name, (time, sequence), name IN ('ProcessExited', 'WaitFailed', 'StartFailed', 'PreparationFailed', 'RunnerLost')) AS end_event,
    toBool(countIf(name = 'OutputSealed') > 0) AS sealed,
    maxIf(output_offset + output_length, stream = 'stdout') AS stdout_bytes,
    maxIf(output_offset + output_length, stream = 'stderr') AS stderr_bytes,
    uniqExact(source, id) AS facts
FROM events
WHERE attempt > 0 AND topic = 'verbatim.executions'
GROUP BY execution_id, created_day, attempt
COMMENT 'Attempts, each by itself';

CREATE OR REPLACE VIEW outcomes_by_hour ON CLUSTER 'verbatim'
(
    created_day Date COMMENT 'Day (UTC); a condition on it reads that day only',
    hour DateTime('UTC') COMMENT 'Hour in which the executions were requested',
    action String COMMENT 'Name of the action; for a command its program',
    status LowCardinality(String),
    executions UInt64,
    duration_ms_p50 Nullable(Float64) COMMENT 'Of those that ended; NULL when none did',
    duration_ms_p95 Nullable(Float64),
    duration_ms_max Nullable(Int64)
)
AS SELECT created_day, toStartOfHour(ifNull(requested_at, toDateTime64(created_day, 9, 'UTC'))) AS hour, ifNull(action, command[1]) AS action, status,
    count() AS executions, quantile(0.5)(duration_ms) AS duration_ms_p50, quantile(0.95)(duration_ms) AS duration_ms_p95, max(duration_ms) AS duration_ms_max
FROM executions FINAL
GROUP BY created_day, hour, action, status
COMMENT 'Outcome and duration by action and hour';

CREATE OR REPLACE VIEW failure_reasons ON CLUSTER 'verbatim'
(
    created_day Date COMMENT 'Day (UTC); a condition on it reads that day only',
    reason String COMMENT 'The machine''s word for the failure',
    error_source String COMMENT 'Where the text is from',
    error String COMMENT 'First line of the text for people, at most 200 characters',
    executions UInt64,
    last_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the last of them ended',
    example String COMMENT 'Id of the last of them'
)
AS SELECT created_day, ifNull(reason, '') AS reason, ifNull(error_source, '') AS error_source,
    substringUTF8(splitByChar('\n', ifNull(error, ''))[1], 1, 200) AS error,
    count() AS executions, max(ended_at) AS last_at, argMax(execution_id, ifNull(ended_at, toDateTime64(0, 9, 'UTC'))) AS example
FROM executions FINAL
WHERE status IN ('failed', 'timeout', 'cancelled', 'lost')
GROUP BY created_day, reason, error_source, error
COMMENT 'What failures say, how often';

CREATE OR REPLACE VIEW runner_utilisation ON CLUSTER 'verbatim'
(
    created_day Date COMMENT 'Day (UTC); a condition on it reads that day only',
    hour DateTime('UTC') COMMENT 'Hour in which the executions started',
    runner String,
    executions UInt64,
    busy_seconds Float64 COMMENT 'Sum of the durations: over 3600 times the slots is full',
    cpu_seconds Float64 COMMENT 'User and system time of the processes',
    max_resident_bytes Nullable(UInt64) COMMENT 'Largest process'
)
AS SELECT created_day, toStartOfHour(assumeNotNull(started_at)) AS hour, ifNull(runner, '') AS runner, count() AS executions,
    sum(ifNull(duration_ms, 0)) / 1000 AS busy_seconds, sum(ifNull(user_ms, 0) + ifNull(system_ms, 0)) / 1000 AS cpu_seconds,
    max(max_resident_bytes) AS max_resident_bytes
FROM executions FINAL
WHERE started_at IS NOT NULL
GROUP BY created_day, hour, runner
COMMENT 'How busy each runner was';

CREATE OR REPLACE VIEW incomplete_executions ON CLUSTER 'verbatim'
(
    execution_id String,
    created_day Date COMMENT 'Day (UTC); a condition on it reads that day only',
    status LowCardinality(String),
    why String COMMENT 'not sealed, bytes missing, digest differs, pipe still held, or not known',
    missing_bytes UInt64 COMMENT 'Bytes that should be there and are not',
    missing Array(Tuple(stream LowCardinality(String), start UInt64, end UInt64)),
    ended_at Nullable(DateTime64(9, 'UTC')),
    runner Nullable(String)
)
AS SELECT execution_id, created_day, status,
    multiIf(NOT sealed, 'not sealed',
        notEmpty(missing), 'bytes missing',
        ifNull(NOT stdout_digest_match, false) OR ifNull(NOT stderr_digest_match, false), 'digest differs',
        ifNull(stdout_pipe_still_held, false) OR ifNull(stderr_pipe_still_held, false), 'pipe still held',
        'not known') AS why,
    arraySum(m -> m.end - m.start, missing) AS missing_bytes, missing, ended_at, runner
FROM executions FINAL
WHERE status IN ('succeeded', 'failed', 'timeout', 'cancelled', 'lost') AND ifNull(NOT complete, true)
COMMENT 'Executions that ended and are not proven to be complete';

-- +goose Down
DROP VIEW IF EXISTS incomplete_executions ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS runner_utilisation ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS failure_reasons ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS outcomes_by_hour ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS attempts ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS output_lines ON CLUSTER 'verbatim';
DROP VIEW IF EXISTS current_executions ON CLUSTER 'verbatim';
ALTER TABLE events ON CLUSTER 'verbatim' DROP INDEX IF EXISTS by_word;
ALTER TABLE events ON CLUSTER 'verbatim' DROP COLUMN IF EXISTS output;
-- What is known of the files that the output is recorded in.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions ON CLUSTER 'verbatim'
    ADD COLUMN IF NOT EXISTS stdout_log_bytes Nullable(UInt64) COMMENT 'Size of the recorded file, before any compression' AFTER stderr_log,
    ADD COLUMN IF NOT EXISTS stderr_log_bytes Nullable(UInt64) COMMENT 'Size of the recorded file, before any compression' AFTER stdout_log_bytes,
    ADD COLUMN IF NOT EXISTS stdout_log_sha256 Nullable(String) COMMENT 'SHA-256 of the recorded file in hex, before any compression' AFTER stderr_log_bytes,
    ADD COLUMN IF NOT EXISTS stderr_log_sha256 Nullable(String) COMMENT 'SHA-256 of the recorded file in hex, before any compression' AFTER stdout_log_sha256,
    ADD COLUMN IF NOT EXISTS stdout_log_match Nullable(Bool) COMMENT 'Whether the recorded file has the bytes that the seal states; NULL when that could not be compared' AFTER stderr_log_sha256,
    ADD COLUMN IF NOT EXISTS stderr_log_match Nullable(Bool) COMMENT 'Whether the recorded file has the bytes that the seal states; NULL when that could not be compared' AFTER stdout_log_match;

-- A view has the columns that there were when it was made.
CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

-- +goose Down
ALTER TABLE executions ON CLUSTER 'verbatim' DROP COLUMN IF EXISTS stdout_log_bytes, DROP COLUMN IF EXISTS stderr_log_bytes, DROP COLUMN IF EXISTS stdout_log_sha256,
    DROP COLUMN IF EXISTS stderr_log_sha256, DROP COLUMN IF EXISTS stdout_log_match, DROP COLUMN IF EXISTS stderr_log_match;
CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS SELECT * EXCEPT state FROM executions FINAL;
-- Rows of running executions are written again and again, so writing one has to be cheap. A part with few rows is one file instead of
-- two for each column; what is large is packed quickly.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions ON CLUSTER 'verbatim' MODIFY SETTING min_bytes_for_wide_part = 268435456;
ALTER TABLE executions ON CLUSTER 'verbatim'
    MODIFY COLUMN stdout CODEC(ZSTD(1)),
    MODIFY COLUMN stderr CODEC(ZSTD(1)),
    MODIFY COLUMN state CODEC(ZSTD(1));

-- +goose Down
ALTER TABLE executions ON CLUSTER 'verbatim' MODIFY COLUMN stdout CODEC(ZSTD(3)), MODIFY COLUMN stderr CODEC(ZSTD(3)), MODIFY COLUMN state CODEC(ZSTD(3));
ALTER TABLE executions ON CLUSTER 'verbatim' RESET SETTING min_bytes_for_wide_part;
-- When the next attempt follows.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions ON CLUSTER 'verbatim'
    ADD COLUMN IF NOT EXISTS retry_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the next attempt is requested; NULL when none follows or that is not known yet' AFTER labels,
    MODIFY COLUMN status COMMENT 'requested, prepared, running; retrying between two attempts; at the end succeeded, failed, timeout, cancelled, lost',
    MODIFY COLUMN succeeded COMMENT 'NULL before the end, between two attempts and when the runner was lost';

CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

-- +goose Down
ALTER TABLE executions ON CLUSTER 'verbatim' DROP COLUMN IF EXISTS retry_at;

CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';
-- The lines of a stream without a copy of all its chunks beside each of them.
-- +goose NO TRANSACTION

-- +goose Up
CREATE OR REPLACE VIEW output_lines ON CLUSTER 'verbatim'
(
    execution_id String COMMENT 'Id of the execution: always give one, or a day of created_day',
    created_day Date COMMENT 'Day (UTC) in which the execution id was made',
    attempt UInt32 COMMENT 'From 1',
    stream LowCardinality(String) COMMENT 'stdout or stderr',
    line_number UInt64 COMMENT 'From 1, of what is archived of the stream',
    offset UInt64 COMMENT 'Position of the line among the archived bytes of the stream, from 0',
    time Nullable(DateTime64(9, 'UTC')) COMMENT 'When the chunk that the line begins in was captured',
    line String COMMENT 'The line without its end, as valid UTF-8'
)
AS SELECT execution_id, created_day, attempt, stream,
    item.1 AS line_number, toUInt64(item.2) AS offset, item.3 AS time, toValidUTF8(item.4) AS line
FROM (
    WITH
        splitByChar('\n', arrayStringConcat(arrayMap(c -> c.3, chunks))) AS pieces,
        if(pieces[-1] = '', arrayPopBack(pieces), pieces) AS texts,
        arrayMap((end, text) -> end - length(text) - 1, arrayCumSum(t -> length(t) + 1, texts), texts) AS begins,
        arrayCumSum(c -> length(c.3), chunks) AS ends,
        arrayMap(c -> c.2, chunks) AS times
    SELECT execution_id, created_day, attempt, stream,
        arrayZip(arrayEnumerate(texts), begins, arrayMap(begin -> times[arrayFirstIndex(e -> e > begin, ends)], begins), texts) AS items
    FROM (
        SELECT execution_id, created_day, attempt, stream, arraySort(groupUniqArray((output_offset, time, output))) AS chunks
        FROM events
        WHERE stream != ''
        GROUP BY execution_id, created_day, attempt, stream
    )
)
ARRAY JOIN items AS item
COMMENT 'Output as lines of text with time and stream';

-- +goose Down
CREATE OR REPLACE VIEW output_lines ON CLUSTER 'verbatim'
(
    execution_id String COMMENT 'Id of the execution: always give one, or a day of created_day',
    created_day Date COMMENT 'Day (UTC) in which the execution id was made',
    attempt UInt32 COMMENT 'From 1',
    stream LowCardinality(String) COMMENT 'stdout or stderr',
    line_number UInt64 COMMENT 'From 1, of what is archived of the stream',
    offset UInt64 COMMENT 'Position of the line among the archived bytes of the stream, from 0',
    time Nullable(DateTime64(9, 'UTC')) COMMENT 'When the chunk that the line begins in was captured',
    line String COMMENT 'The line without its end, as valid UTF-8'
)
AS WITH
    splitByChar('\n', arrayStringConcat(arrayMap(c -> c.3, chunks))) AS pieces,
    if(pieces[-1] = '', arrayPopBack(pieces), pieces) AS texts,
    arrayMap((end, text) -> end - length(text) - 1, arrayCumSum(t -> length(t) + 1, texts), texts) AS begins,
    arrayCumSum(c -> length(c.3), chunks) AS ends
SELECT execution_id, created_day, attempt, stream,
    (arrayJoin(arrayZip(arrayEnumerate(texts), begins, texts)) AS item).1 AS line_number,
    toUInt64(item.2) AS offset,
    (chunks[arrayFirstIndex(e -> e > item.2, ends)]).2 AS time,
    toValidUTF8(item.3) AS line
FROM (
    SELECT execution_id, created_day, attempt, stream, arraySort(groupUniqArray((output_offset, time, output))) AS chunks
    FROM events
    WHERE stream != ''
    GROUP BY execution_id, created_day, attempt, stream
)
COMMENT 'Output as lines of text with time and stream';
-- Days whose artifacts retention has removed: one line says it of all their executions, whose facts stay as they are. Who reads rows sees no
-- URI then that leads nowhere; size and digest stay.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS removed_artifacts ON CLUSTER 'verbatim'
(
    created_day Date COMMENT 'Day (UTC) in which the execution ids were made',
    removed_at DateTime64(3, 'UTC') COMMENT 'When their files were removed last'
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', removed_at)
ORDER BY created_day
COMMENT 'Days whose recorded files retention has removed';

ALTER TABLE executions ON CLUSTER 'verbatim'
    MODIFY COLUMN stdout_log COMMENT 'URI of the recorded file, also when retention has removed it: see removed_artifacts and current_executions',
    MODIFY COLUMN stderr_log COMMENT 'URI of the recorded file, also when retention has removed it: see removed_artifacts and current_executions';

CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state REPLACE (
    if(created_day IN (SELECT created_day FROM removed_artifacts), NULL, stdout_log) AS stdout_log,
    if(created_day IN (SELECT created_day FROM removed_artifacts), NULL, stderr_log) AS stderr_log
)
FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet, and without URIs of files that were removed';

-- +goose Down
CREATE OR REPLACE VIEW current_executions ON CLUSTER 'verbatim' AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';
DROP TABLE IF EXISTS removed_artifacts ON CLUSTER 'verbatim';
