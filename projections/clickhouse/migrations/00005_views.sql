-- Flat tables for analysts, each with its columns explained ("DESCRIBE TABLE output_lines"). They are views: nothing is
-- stored twice, and a condition on execution_id or day reads that part only.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE events ADD COLUMN IF NOT EXISTS output String
    ALIAS multiIf(stream = '', '', content_type = 'application/json', base64Decode(JSONExtractString(payload, 'data')), substring(payload, payload_bytes - output_length + 1))
    COMMENT 'OutputChunk: the bytes of output; else empty' AFTER output_length;

ALTER TABLE events ADD INDEX IF NOT EXISTS by_word
    lower(multiIf(stream = '', '', content_type = 'application/json', base64Decode(JSONExtractString(payload, 'data')), substring(payload, payload_bytes - output_length + 1)))
    TYPE text(tokenizer = 'splitByNonAlpha');

CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

CREATE OR REPLACE VIEW output_lines
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

CREATE OR REPLACE VIEW attempts
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

CREATE OR REPLACE VIEW outcomes_by_hour
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

CREATE OR REPLACE VIEW failure_reasons
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

CREATE OR REPLACE VIEW runner_utilisation
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

CREATE OR REPLACE VIEW incomplete_executions
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
DROP VIEW IF EXISTS incomplete_executions;
DROP VIEW IF EXISTS runner_utilisation;
DROP VIEW IF EXISTS failure_reasons;
DROP VIEW IF EXISTS outcomes_by_hour;
DROP VIEW IF EXISTS attempts;
DROP VIEW IF EXISTS output_lines;
DROP VIEW IF EXISTS current_executions;
ALTER TABLE events DROP INDEX IF EXISTS by_word;
ALTER TABLE events DROP COLUMN IF EXISTS output;
