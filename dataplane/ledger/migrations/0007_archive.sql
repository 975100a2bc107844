-- Retention: days whose events were moved to an archive. The rows of `certeus.batches` stay, as the log's tiles need them.

CREATE TABLE certeus.archives (
    ledger      text        NOT NULL,
    day         date        NOT NULL,
    first_id    uuid        NOT NULL,
    last_id     uuid        NOT NULL,
    first_index bigint      NOT NULL,
    last_index  bigint      NOT NULL,
    location    text        NOT NULL,
    name        text        NOT NULL,
    sha256      bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    bytes       bigint      NOT NULL,
    events      bigint      NOT NULL CHECK (events > 0),
    erased      bigint      NOT NULL CHECK (erased BETWEEN 0 AND events),
    archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger, first_id)
);
CREATE INDEX archives_day ON certeus.archives (day);
COMMENT ON TABLE certeus.archives IS 'Files of archived events, each read back in full before it was recorded here';
COMMENT ON COLUMN certeus.archives.first_index IS 'Smallest index; as files are in the order of ids, others may lie between';

CREATE TABLE certeus.archived_days (
    ledger     text        NOT NULL,
    day        date        NOT NULL,
    live_index bigint,
    dropped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger, day)
);
COMMENT ON TABLE certeus.archived_days IS 'Days whose partition was dropped after all its events were archived';
COMMENT ON COLUMN certeus.archived_days.live_index IS 'No event below this index is in the database; NULL if some are';

CREATE TABLE certeus.archive_leftovers (
    name   text        PRIMARY KEY,
    due_at timestamptz NOT NULL
);
COMMENT ON TABLE certeus.archive_leftovers IS
    'Files that no record names: being written, given up, or replaced as an event of theirs was erased; deleted when due';
