-- Erasure: an event's payload and salt can be destroyed, while its log entry and its place stay.
--
-- A batch without erasures derives its salts from its secret. The first erasure in a batch writes down the salts of all
-- its events, zeroes the erased one, and destroys the secret, from which it could be derived again.

ALTER TABLE certeus.batches ALTER COLUMN secret DROP NOT NULL;
ALTER TABLE certeus.batches ADD COLUMN salts bytea;
-- Hashes do not compress: do not try.
ALTER TABLE certeus.batches ALTER COLUMN salts SET STORAGE EXTERNAL;
-- Every row before this migration has a secret and no salts: there is nothing to read through a large table for.
ALTER TABLE certeus.batches ADD CONSTRAINT batches_secret_or_salts
    CHECK ((secret IS NULL) <> (salts IS NULL)) NOT VALID;
ALTER TABLE certeus.batches ADD CONSTRAINT batches_salts_length
    CHECK (octet_length(salts) = 32 * event_count) NOT VALID;

CREATE TABLE certeus.erasures (
    event_id       uuid        PRIMARY KEY,
    ledger         text        NOT NULL,
    index          bigint      NOT NULL,
    reason         text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 1024),
    erased_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    audit_event_id uuid        NOT NULL,
    audit_index    bigint      NOT NULL,
    UNIQUE (ledger, index)
);
COMMENT ON TABLE certeus.erasures IS 'Events whose payload was erased: when, why, and the event of the ledger that says so';
