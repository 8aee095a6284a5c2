-- The inputs that jobs name: SHA-256 of their content, 32 bytes.
CREATE TABLE inputs (
    input BLOB NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (input, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX inputs_by_job ON inputs (seq);
