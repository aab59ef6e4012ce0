-- How much of the output was masked because it was a secret.
-- +goose NO TRANSACTION

-- +goose Up
ALTER TABLE executions
    ADD COLUMN IF NOT EXISTS stdout_masked_ranges Nullable(UInt64) COMMENT 'Runs of bytes that were masked as secrets; NULL until sealed' AFTER elided,
    ADD COLUMN IF NOT EXISTS stderr_masked_ranges Nullable(UInt64) COMMENT 'Runs of bytes that were masked as secrets; NULL until sealed' AFTER stdout_masked_ranges;

-- +goose Down
ALTER TABLE executions DROP COLUMN IF EXISTS stdout_masked_ranges, DROP COLUMN IF EXISTS stderr_masked_ranges;
