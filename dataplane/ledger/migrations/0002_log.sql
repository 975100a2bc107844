-- The signed log of each ledger: RFC 6962 trees over the entries of `certeus.batches`, stored as C2SP tlog-tiles.
--
-- Tiles of level 0 are not stored: they are computed from `entries`, which never change. What is stored above them costs
-- 32 bytes per 256 events, and shows a later change of `entries` as a difference.

CREATE TABLE certeus.log_heads (
    ledger     text        PRIMARY KEY REFERENCES certeus.heads (ledger),
    epoch      bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    tree_size  bigint      NOT NULL DEFAULT 0 CHECK (tree_size >= 0),
    root       bytea       CHECK (octet_length(root) = 32),
    checkpoint text,
    signed_at  timestamptz,
    refused    text,
    CHECK ((root IS NULL) = (checkpoint IS NULL) AND (root IS NULL) = (signed_at IS NULL))
) WITH (fillfactor = 50);
COMMENT ON TABLE certeus.log_heads IS 'Newest signed checkpoint per ledger; the epoch fences sealers that lost their lock';
COMMENT ON COLUMN certeus.log_heads.refused IS 'Why the sealer does not sign; then no pod takes events either';

CREATE TABLE certeus.log_tiles (
    ledger     text     NOT NULL,
    level      smallint NOT NULL CHECK (level BETWEEN 1 AND 7),
    tile_index bigint   NOT NULL CHECK (tile_index >= 0),
    hashes     bytea    NOT NULL CHECK (octet_length(hashes) % 32 = 0 AND octet_length(hashes) BETWEEN 32 AND 8192),
    PRIMARY KEY (ledger, level, tile_index)
);
-- Hashes do not compress: do not try.
ALTER TABLE certeus.log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE certeus.log_tiles IS 'Tiles above level 0: full ones, which never change, and the newest of each level, which grow';

CREATE TABLE certeus.checkpoints (
    ledger    text        NOT NULL,
    tree_size bigint      NOT NULL CHECK (tree_size >= 0),
    root      bytea       NOT NULL CHECK (octet_length(root) = 32),
    note      text        NOT NULL,
    signed_at timestamptz NOT NULL,
    PRIMARY KEY (ledger, tree_size)
);
COMMENT ON TABLE certeus.checkpoints IS 'Signed checkpoints of the past: the newest thousand, and the first of each hour before';

CREATE TABLE certeus.log_keys (
    ledger     text        NOT NULL,
    vkey       text        NOT NULL,
    first_used timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger, vkey)
);
COMMENT ON TABLE certeus.log_keys IS 'Public keys that have signed, so that retired ones stay published';
