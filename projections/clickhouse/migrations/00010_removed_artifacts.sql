-- Days whose artifacts retention has removed: one line says it of all their executions, whose facts stay as they are. Who reads rows sees no
-- URI then that leads nowhere; size and digest stay.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS removed_artifacts
(
    created_day Date COMMENT 'Day (UTC) in which the execution ids were made',
    removed_at DateTime64(3, 'UTC') COMMENT 'When their files were removed last'
)
ENGINE = ReplacingMergeTree(removed_at)
ORDER BY created_day
COMMENT 'Days whose recorded files retention has removed';

ALTER TABLE executions
    MODIFY COLUMN stdout_log COMMENT 'URI of the recorded file, also when retention has removed it: see removed_artifacts and current_executions',
    MODIFY COLUMN stderr_log COMMENT 'URI of the recorded file, also when retention has removed it: see removed_artifacts and current_executions';

CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state REPLACE (
    if(created_day IN (SELECT created_day FROM removed_artifacts), NULL, stdout_log) AS stdout_log,
    if(created_day IN (SELECT created_day FROM removed_artifacts), NULL, stderr_log) AS stderr_log
)
FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet, and without URIs of files that were removed';

-- +goose Down
CREATE OR REPLACE VIEW current_executions AS
SELECT * EXCEPT state FROM executions FINAL
COMMENT 'Executions as they are now: the table executions without versions that are not merged yet';
DROP TABLE IF EXISTS removed_artifacts;
