-- The lines of a stream without a copy of all its chunks beside each of them.
-- +goose NO TRANSACTION

-- +goose Up
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
