-- When the next attempt follows.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions
    ADD COLUMN IF NOT EXISTS retry_at Nullable(DateTime64(9, 'UTC')) COMMENT 'When the next attempt is requested; NULL when none follows or that is not known yet' AFTER labels,
    MODIFY COLUMN status COMMENT 'requested, prepared, running; retrying between two attempts; at the end succeeded, failed, timeout, cancelled, lost',
    MODIFY COLUMN succeeded COMMENT 'NULL before the end, between two attempts and when the runner was lost';

CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';

-- +goose Down
ALTER TABLE executions DROP COLUMN IF EXISTS retry_at;

CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';
