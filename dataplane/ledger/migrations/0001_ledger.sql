-- The ledger's storage: one head per ledger, one row per committed batch, one row per event.
--
-- An event's id is its batch's id plus its position in the last five hexadecimal digits (20 bits), so the event table
-- needs one B-tree only, and an event's index is its batch's first index plus that position.

CREATE TABLE certeus.heads (
    ledger     text   PRIMARY KEY CHECK (ledger ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    next_index bigint NOT NULL DEFAULT 0 CHECK (next_index >= 0)
) WITH (fillfactor = 10);
COMMENT ON TABLE certeus.heads IS 'Next free index per ledger; its row lock orders the commits';

CREATE TABLE certeus.batches (
    ledger       text        NOT NULL,
    first_index  bigint      NOT NULL,
    event_count  integer     NOT NULL CHECK (event_count BETWEEN 1 AND 1048576),
    batch_id     uuid        NOT NULL UNIQUE,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    min_time     timestamptz NOT NULL,
    max_time     timestamptz NOT NULL,
    secret       bytea       NOT NULL CHECK (octet_length(secret) = 32),
    entries      bytea       NOT NULL CHECK (octet_length(entries) = 32 * event_count),
    PRIMARY KEY (ledger, first_index)
);
-- Hashes do not compress: do not try.
ALTER TABLE certeus.batches ALTER COLUMN entries SET STORAGE EXTERNAL;
COMMENT ON TABLE certeus.batches IS 'One row per commit: where its events stand, the salt secret and the log entries';

CREATE TABLE certeus.events (
    id         uuid        NOT NULL,
    event_time timestamptz NOT NULL,
    type       text        NOT NULL,
    payload    bytea       NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
COMMENT ON TABLE certeus.events IS 'Events as received; one partition per UTC day, as ids begin with the time';

CREATE FUNCTION certeus.batch_of(id uuid) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (left(id::text, 31) || '00000')::uuid;

CREATE FUNCTION certeus.position_of(id uuid) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ('x' || right(id::text, 5))::bit(20)::integer;

CREATE FUNCTION certeus.last_id(batch_id uuid, event_count integer) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (left(batch_id::text, 31) || lpad(to_hex(event_count - 1), 5, '0'))::uuid;

CREATE VIEW certeus.event_log AS
SELECT b.ledger,
       b.first_index + certeus.position_of(e.id) AS index,
       e.id,
       e.type,
       e.event_time,
       b.committed_at AS received_at,
       e.payload
  FROM certeus.events e
  JOIN certeus.batches b ON b.batch_id = certeus.batch_of(e.id);
COMMENT ON VIEW certeus.event_log IS 'Every event with its place in the log; the payload as text is convert_from(payload, ''UTF8'')';
