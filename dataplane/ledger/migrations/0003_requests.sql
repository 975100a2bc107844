-- Exactly once: which requests are stored already, how far each producer is, and the cases that events belong to.

CREATE TABLE certeus.requests (
    period      integer NOT NULL,
    key         bytea   NOT NULL CHECK (octet_length(key) = 32),
    body        bytea   NOT NULL CHECK (octet_length(body) = 32),
    batch_id    uuid    NOT NULL,
    position    integer NOT NULL,
    event_count integer NOT NULL,
    PRIMARY KEY (key, period)
) PARTITION BY LIST (period);
COMMENT ON TABLE certeus.requests IS
    'Requests with an idempotency key or a producer''s sequence, as digests; old partitions are dropped';

CREATE TABLE certeus.producers (
    ledger         text   NOT NULL,
    producer       text   NOT NULL COLLATE "C",
    epoch          bigint NOT NULL CHECK (epoch BETWEEN 0 AND 4294967295),
    first_sequence bigint NOT NULL CHECK (first_sequence >= 0),
    next_sequence  bigint NOT NULL CHECK (next_sequence > first_sequence),
    PRIMARY KEY (ledger, producer)
) WITH (fillfactor = 50);
COMMENT ON TABLE certeus.producers IS 'Per producer: its epoch, the sequence numbers of its last commit, the next one';

ALTER TABLE certeus.batches ADD COLUMN producers bytea;
COMMENT ON COLUMN certeus.batches.producers IS
    'Which of the events came with a producer''s sequence; NULL for none. The format is in docs/formats/envelope.md';

CREATE TABLE certeus.cases (
    ledger  text   NOT NULL,
    case_id text   NOT NULL COLLATE "C",
    index   bigint NOT NULL,
    id      uuid   NOT NULL,
    PRIMARY KEY (ledger, case_id, index)
);
COMMENT ON TABLE certeus.cases IS 'The events of each case in log order';
