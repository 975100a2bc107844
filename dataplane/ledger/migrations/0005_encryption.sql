-- Field encryption: what a batch says of the key that members of its events are encrypted with.

ALTER TABLE certeus.batches ADD COLUMN key_id bytea CHECK (octet_length(key_id) = 56);
COMMENT ON COLUMN certeus.batches.key_id IS
    'Key id, salt and key commitment; NULL when nothing was encrypted. The format is in docs/formats/field-encryption.md';
