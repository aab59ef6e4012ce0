-- Rows of running executions are written again and again, so writing one has to be cheap. A part with few rows is one file instead of
-- two for each column; what is large is packed quickly.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions MODIFY SETTING min_bytes_for_wide_part = 268435456;
ALTER TABLE executions
    MODIFY COLUMN stdout CODEC(ZSTD(1)),
    MODIFY COLUMN stderr CODEC(ZSTD(1)),
    MODIFY COLUMN state CODEC(ZSTD(1));

-- +goose Down
ALTER TABLE executions MODIFY COLUMN stdout CODEC(ZSTD(3)), MODIFY COLUMN stderr CODEC(ZSTD(3)), MODIFY COLUMN state CODEC(ZSTD(3));
ALTER TABLE executions RESET SETTING min_bytes_for_wide_part;
