-- Jobs that are over and whose end is still to be told to their webhooks.
CREATE TABLE calls (
    seq INTEGER PRIMARY KEY,
    due INTEGER NOT NULL,
    tries INTEGER NOT NULL
) STRICT;
CREATE INDEX calls_due ON calls (due);
