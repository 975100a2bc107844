-- What pods know of the log and did not find in the database. Each has an anchor of its own, and the one that seals may know less
-- than another: after a restore from an old backup it would sign a second history.

CREATE TABLE certeus.log_witnesses (
    ledger    text   NOT NULL,
    tree_size bigint NOT NULL CHECK (tree_size >= 0),
    root      bytea  NOT NULL CHECK (octet_length(root) = 32),
    note      text   NOT NULL,
    seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ledger, tree_size, root)
);
COMMENT ON TABLE certeus.log_witnesses IS
    'Signed checkpoints that a pod knows and the log does not reach or continue: nothing is signed until it does';
