-- One row per execution, folded from its facts (projections/execution). Replaced by the row with the greater
-- version; key and partition come from the execution's id alone and never change. A row can be thrown away: it is rebuilt
-- from the events.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS executions
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
ENGINE = ReplacingMergeTree(version)
PARTITION BY created_day
ORDER BY (created_day, execution_id)
SETTINGS index_granularity = 1024
COMMENT 'Executions. Read with FINAL: between merges there are older versions of a row';

-- +goose Down
DROP TABLE IF EXISTS executions;
