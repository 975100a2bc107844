-- Published proof bundles. Each is also recorded by an event of type `certeus.bundle`.

CREATE TABLE certeus.bundles (
    rid          uuid        PRIMARY KEY,
    ledger       text        NOT NULL REFERENCES certeus.heads (ledger),
    jws          text,
    sha256       bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event_id     uuid        NOT NULL,
    event_index  bigint      NOT NULL CHECK (event_index >= 0),
    shown        uuid[]      NOT NULL
);
-- An erasure withdraws the bundles that show the event.
CREATE INDEX bundles_shown ON certeus.bundles USING gin (shown);
COMMENT ON TABLE certeus.bundles IS 'Published proof bundles; the format is in docs/formats/bundle.md';
COMMENT ON COLUMN certeus.bundles.jws IS 'NULL once an event that it shows was erased';
COMMENT ON COLUMN certeus.bundles.shown IS 'Events whose payload is in the bundle';
