-- What is known of the files that the output is recorded in.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions
    ADD COLUMN IF NOT EXISTS stdout_log_bytes Nullable(UInt64) COMMENT 'Size of the recorded file, before any compression' AFTER stderr_log,
    ADD COLUMN IF NOT EXISTS stderr_log_bytes Nullable(UInt64) COMMENT 'Size of the recorded file, before any compression' AFTER stdout_log_bytes,
    ADD COLUMN IF NOT EXISTS stdout_log_sha256 Nullable(String) COMMENT 'SHA-256 of the recorded file in hex, before any compression' AFTER stderr_log_bytes,
    ADD COLUMN IF NOT EXISTS stderr_log_sha256 Nullable(String) COMMENT 'SHA-256 of the recorded file in hex, before any compression' AFTER stdout_log_sha256,
    ADD COLUMN IF NOT EXISTS stdout_log_match Nullable(Bool) COMMENT 'Whether the recorded file has the bytes that the seal states; NULL when that could not be compared' AFTER stderr_log_sha256,
    ADD COLUMN IF NOT EXISTS stderr_log_match Nullable(Bool) COMMENT 'Whether the recorded file has the bytes that the seal states; NULL when that could not be compared' AFTER stdout_log_match;

-- A view has the columns that there were when it was made.
CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

-- +goose Down
ALTER TABLE executions DROP COLUMN IF EXISTS stdout_log_bytes, DROP COLUMN IF EXISTS stderr_log_bytes, DROP COLUMN IF EXISTS stdout_log_sha256,
    DROP COLUMN IF EXISTS stderr_log_sha256, DROP COLUMN IF EXISTS stdout_log_match, DROP COLUMN IF EXISTS stderr_log_match;
CREATE OR REPLACE VIEW current_executions AS SELECT * EXCEPT state FROM executions FINAL;
