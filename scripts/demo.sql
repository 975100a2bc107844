-- Compares what the load generator was told with what the database holds. Reads nothing of the pods.
\pset tuples_only on
\pset format unaligned
CREATE TEMP TABLE ack (run text, first_seq bigint, count bigint, first_index bigint, first_id uuid);
-- \copy takes no variables.
\set copy '\\copy ack from ' :acks
:copy
CREATE TEMP TABLE expected AS
SELECT run, first_seq + k AS seq, first_index + k AS index FROM ack, generate_series(0, count - 1) AS k;

CREATE TEMP TABLE stored AS
SELECT event ->> 'run' AS run, (event ->> 'seq')::bigint AS seq, index
  FROM (SELECT convert_from(payload, 'UTF8')::json AS event, index FROM certeus.event_log WHERE ledger = 'default') AS log;

SELECT count(*) AS acknowledged FROM expected \gset
SELECT count(*) AS stored, coalesce(max(index) + 1, 0) - count(DISTINCT index) AS gaps FROM stored \gset
SELECT count(*) AS lost FROM expected LEFT JOIN stored USING (run, seq) WHERE stored.index IS NULL \gset
SELECT count(*) AS displaced FROM expected JOIN stored USING (run, seq) WHERE expected.index <> stored.index \gset
SELECT count(*) AS duplicated FROM (SELECT FROM stored GROUP BY run, seq HAVING count(*) > 1) AS twice \gset
SELECT :acknowledged = :stored AND :acknowledged > 0 AND 0 = ALL (ARRAY[:gaps, :lost, :displaced, :duplicated]) AS exact \gset

\echo '    acknowledged:           ' :acknowledged
\echo '    stored:                 ' :stored
\echo '    lost:                   ' :lost
\echo '    stored more than once:  ' :duplicated
\echo '    at another index:       ' :displaced
\echo '    gaps in the index:      ' :gaps
\if :exact
    \echo 'verdict: exact'
\else
    \echo 'verdict: NOT exact'
\endif
