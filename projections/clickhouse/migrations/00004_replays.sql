-- How far each replay is, by the table it rebuilds rows in: so a replay that was stopped goes on.
-- +goose NO TRANSACTION

-- +goose Up
CREATE TABLE IF NOT EXISTS replays
(
    shadow String COMMENT 'Table the rows are rebuilt in',
    position String COMMENT 'What is replayed and up to where, as JSON',
    saved_at DateTime64(9, 'UTC') COMMENT 'The latest counts'
)
ENGINE = ReplacingMergeTree(saved_at)
ORDER BY shadow
COMMENT 'Replays of events into shadow tables';

-- +goose Down
DROP TABLE IF EXISTS replays;
